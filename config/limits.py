"""`limits` of `config/serve.yaml`: how much one request may ask for. The defaults fit a small server."""

from pydantic import Field

from config.model import Config


class RequestLimits(Config):
    """Most of everything that makes a request costly. Beyond any of them, the answer is a 400 that names it."""

    max_tokens: int = Field(
        2048,
        ge=1,
        description="Tokens of an answer: `max_tokens`, `max_completion_tokens`, `max_output_tokens`, `min_tokens`.",
    )
    max_n: int = Field(8, ge=1, description="Answers to one prompt: `n`, `best_of`.")
    max_prompts: int = Field(16, ge=1, description="Prompts of one request to /v1/completions.")
    max_sequences: int = Field(
        32,
        ge=1,
        description="Answers of one request in all: prompts times `n`; by default no more than `max_num_seqs`.",
    )
    max_logprobs: int = Field(
        20, ge=0, description="`logprobs`, `top_logprobs`, `prompt_logprobs`; vLLM takes no more than 20 by default."
    )
    max_prompt_chars: int = Field(
        65_536,
        ge=1,
        description="Characters of prompts, messages and tools together, before they become tokens; numbers (token "
        "ids) count as one each. 32 for each of 2,048 tokens; raise it with `max_model_len`.",
    )
    max_messages: int = Field(256, ge=1, description="Entries of `messages`, or of a list of `input`.")
    max_tools: int = Field(64, ge=1, description="Entries of `tools`.")
    max_stop: int = Field(
        4, ge=1, description="Entries of `stop`. vLLM takes 4, unless VLLM_MAX_STOP_STRINGS says otherwise."
    )
    max_stop_chars: int = Field(128, ge=1, description="Characters of one entry of `stop` or `bad_words`.")
    max_token_rules: int = Field(
        300,
        ge=1,
        description="Entries of each of `logit_bias`, `bad_words`, `stop_token_ids`, `allowed_token_ids`, "
        "`logprob_token_ids`. OpenAI's own limit of `logit_bias`.",
    )
    max_schema_bytes: int = Field(
        32_768, ge=1, description="One JSON schema, grammar or tool, as JSON with what it is wrapped in, bytes."
    )
    max_schema_depth: int = Field(
        32, ge=1, le=64, description="Levels of objects and lists in one schema, with what it is wrapped in."
    )
    max_schema_repeats: int = Field(
        4096, ge=1, description="`minItems`, `maxLength` and the like: a grammar may grow with them."
    )
    max_pattern_chars: int = Field(
        2048,
        ge=1,
        le=4096,
        description="Characters of one regular expression, its counted repetitions (`x{2,50}`) written out. What "
        "varies in length inside a repeated group counts more: a text may then be read in many ways.",
    )
    max_grammar_cost: int = Field(
        4096,
        ge=1,
        description="All schemas, tools and patterns of a request together: 1 for each property and alternative, 4 for "
        "each `maxLength` and the like, 1 for each character of a pattern written out.",
    )
    grammar_timeout_s: float = Field(
        5.0, gt=0, le=60, description="Processor time to compile one grammar, seconds; then a 400."
    )
    allow_regex: bool = Field(
        False, description="Take `structured_outputs.regex`. Patterns in JSON schemas are always taken."
    )
    allow_grammar: bool = Field(False, description="Take `structured_outputs.grammar`, in EBNF or Lark.")
    allow_structural_tag: bool = Field(
        False, description="Take structural tags from clients. Strict tools, which become some, are always taken."
    )
    max_depth: int = Field(
        64, ge=1, le=200, description="Levels of objects and lists in one field. What reads a body later may recurse."
    )
