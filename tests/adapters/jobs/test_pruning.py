"""What ended jobs and batches leave is removed after a while, and nothing else."""

from adapters.jobs.errors import UnknownIdError
from adapters.jobs.pruning import prune
from adapters.jobs.records import Batch, Job, StoredFile
from tests.jobs_home import JobsHome

KEEP_S = 30 * 86400.0


def ended_job(home: JobsHome, result: StoredFile) -> Job:
    """A job with a published model, a checkpoint and a result file."""
    job = home.running()
    home.queue.add_checkpoint(
        job.id, "w1", 4, model_name="ft:b:acme:s:1:ckpt-step-4", metrics={}, version="acme-support@1"
    )
    return home.queue.finish(
        job.id, "w1", "succeeded", fine_tuned_model="ft:b:acme:s:1", version="acme-support@2", result_files=[result.id]
    )


def ended_batch(home: JobsHome, output: StoredFile, error: StoredFile) -> Batch:
    batch = home.batch()
    assert home.batches.claim("s1") is not None
    home.batches.start(batch.id, "s1", 2)
    return home.batches.finish(batch.id, "s1", "completed", output_file_id=output.id, error_file_id=error.id)


def is_there(home: JobsHome, file: StoredFile) -> bool:
    try:
        home.files.open("acme", file.id).close()
    except UnknownIdError:
        return False
    return True


def test_old_results_go_and_names_stay(home: JobsHome) -> None:
    result = home.stored(b"step,train_loss\n", purpose="fine-tune-results")
    output, error = home.stored(b"answers", purpose="batch_output"), home.stored(b"errors", purpose="batch_output")
    job, batch = ended_job(home, result), ended_batch(home, output, error)
    home.clock.now_s += KEEP_S
    assert prune(home.database, KEEP_S, home.clock()) == 3
    home.files.sweep()
    assert not any(is_there(home, file) for file in (result, output, error))
    assert home.content() == sorted({home.files.get("acme", job.training_file).sha256})
    assert home.messages(job) == []
    assert home.queue.get("acme", job.id) == job
    assert home.batches.get("acme", batch.id) == batch
    names = [model.name for model in home.names.list("acme").items]
    assert names == ["ft:b:acme:s:1", "ft:b:acme:s:1:ckpt-step-4"]
    assert len(home.queue.checkpoints("acme", job.id).items) == 1
    assert prune(home.database, KEEP_S, home.clock()) == 0


def test_what_ended_later_stays(home: JobsHome) -> None:
    result = home.stored(b"step,train_loss\n", purpose="fine-tune-results")
    output, error = home.stored(b"answers", purpose="batch_output"), home.stored(b"errors", purpose="batch_output")
    job = ended_job(home, result)
    ended_batch(home, output, error)
    home.clock.now_s += KEEP_S - 1
    assert prune(home.database, KEEP_S, home.clock()) == 0
    assert all(is_there(home, file) for file in (result, output, error))
    assert home.messages(job)[-1] == "The job has successfully completed"


def test_unfinished_jobs_keep_their_events_however_old(home: JobsHome) -> None:
    waiting, running = home.submitted(), home.submitted()
    home.queue.claim("w1")
    unfinished = home.batch()
    home.clock.now_s += 2 * KEEP_S
    assert prune(home.database, KEEP_S, home.clock()) == 0
    assert home.messages(waiting)
    assert home.messages(running)
    assert home.files.held_path(unfinished.id, unfinished.input_file_id).exists()


def test_a_result_that_an_unfinished_job_uses_stays(home: JobsHome) -> None:
    result = home.stored(b"rows", purpose="fine-tune-results")
    ended_job(home, result)
    waiting = home.submitted(file=result)
    home.clock.now_s += KEEP_S
    assert prune(home.database, KEEP_S, home.clock()) == 0
    assert is_there(home, result)
    home.queue.ask(None, waiting.id, "cancel")
    assert prune(home.database, KEEP_S, home.clock()) == 1


def test_a_clients_file_is_no_result_though_a_job_names_it(home: JobsHome) -> None:
    uploaded = home.stored(b"rows")
    ended_job(home, uploaded)
    home.clock.now_s += KEEP_S
    assert prune(home.database, KEEP_S, home.clock()) == 0
    assert is_there(home, uploaded)
