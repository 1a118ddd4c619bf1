"""A model that grades answers: `Judging`, on `EngineJudge` or `HttpJudge`."""
