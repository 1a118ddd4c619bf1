"""`limits` of `config/serve.yaml`: limits of a single request. The defaults fit a small server."""

from pydantic import Field

from config.model import Config


class RequestLimits(Config):
    """Limits on everything that makes a request costly. Exceeding one gives a 400 that names it."""

    max_tokens: int = Field(
        2048,
        ge=1,
        description="Maximum of `max_tokens`, `max_completion_tokens`, `max_output_tokens`, `min_tokens`.",
    )
    max_n: int = Field(8, ge=1, description="Maximum answers per prompt: `n`, `best_of`.")
    max_prompts: int = Field(16, ge=1, description="Maximum prompts per request to /v1/completions.")
    max_sequences: int = Field(
        32,
        ge=1,
        description="Maximum answers per request: prompts times `n`. By default at most `max_num_seqs`.",
    )
    max_logprobs: int = Field(
        20,
        ge=0,
        description="Maximum of `logprobs`, `top_logprobs`, `prompt_logprobs`; vLLM's own default limit is 20.",
    )
    max_prompt_chars: int = Field(
        65_536,
        ge=1,
        description="Maximum characters of prompts, messages and tools together, before tokenization; numbers (token "
        "ids) count as one each. The default is 32 for each of 2,048 tokens; raise it with `max_model_len`.",
    )
    max_messages: int = Field(256, ge=1, description="Maximum entries of `messages`, or of a list of `input`.")
    max_tools: int = Field(64, ge=1, description="Maximum entries of `tools`.")
    max_stop: int = Field(
        4, ge=1, description="Maximum entries of `stop`. vLLM accepts 4, unless VLLM_MAX_STOP_STRINGS is set."
    )
    max_stop_chars: int = Field(128, ge=1, description="Maximum characters of one entry of `stop` or `bad_words`.")
    max_token_rules: int = Field(
        300,
        ge=1,
        description="Maximum entries of each of `logit_bias`, `bad_words`, `stop_token_ids`, `allowed_token_ids`, "
        "`logprob_token_ids`. OpenAI's own limit of `logit_bias`.",
    )
    max_schema_bytes: int = Field(
        32_768,
        ge=1,
        description="Maximum size of one JSON schema, grammar or tool, as JSON including its wrapper, bytes.",
    )
    max_schema_depth: int = Field(
        32, ge=1, le=64, description="Maximum nesting of objects and lists in one schema, including its wrapper."
    )
    max_schema_repeats: int = Field(
        4096,
        ge=1,
        description="Maximum of `minItems`, `maxLength` and the like: a grammar may grow with them.",
    )
    max_pattern_chars: int = Field(
        2048,
        ge=1,
        le=4096,
        description="Maximum characters of one regular expression, with counted repetitions (`x{2,50}`) expanded. "
        "Variable lengths inside a repeated group count more: a text can then match in many ways.",
    )
    max_grammar_cost: int = Field(
        4096,
        ge=1,
        description="Maximum cost of all schemas, tools and patterns of a request: 1 for each property and "
        "alternative, "
        "4 for each `maxLength` and the like, 1 for each character of an expanded pattern.",
    )
    grammar_timeout_s: float = Field(
        5.0, gt=0, le=60, description="Maximum processor time to compile one grammar, seconds; then a 400."
    )
    allow_regex: bool = Field(
        False, description="Accept `structured_outputs.regex`. Patterns in JSON schemas are always accepted."
    )
    allow_grammar: bool = Field(False, description="Accept `structured_outputs.grammar`, in EBNF or Lark.")
    allow_structural_tag: bool = Field(
        False,
        description="Accept structural tags from clients. Strict tools, which use them internally, are always "
        "accepted.",
    )
    max_depth: int = Field(
        64,
        ge=1,
        le=200,
        description="Maximum nesting of objects and lists in one field: later readers of the body may recurse.",
    )
