"""A teacher model at any OpenAI-compatible endpoint."""

from dataclasses import dataclass

import openai

from train.errors import DataError


@dataclass(frozen=True)
class Teacher:
    """An OpenAI-compatible endpoint; the client waits and tries again where that helps."""

    client: openai.OpenAI
    model: str

    def ask(self, prompt: str, max_tokens: int) -> tuple[str, int]:
        """Answer and number of tokens of prompt and answer.

        Raises:
            DataError: The teacher gives no answer.
        """
        try:
            answer = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=1.0,
                response_format={"type": "json_object"},
            )
        except openai.OpenAIError as error:
            raise DataError(f"The teacher {self.model!r} at {self.client.base_url} gave no answer: {error}") from error
        text = (answer.choices[0].message.content or "") if answer.choices else ""
        estimated = (len(prompt) + len(text)) // 4
        return text, answer.usage.total_tokens if answer.usage else estimated


def make_teacher(url: str, model: str, api_key: str | None) -> Teacher:
    """A client of an endpoint; a local one needs no key."""
    if not url.startswith(("http://", "https://")):
        raise DataError(f"--teacher {url!r} must be an http(s) URL, as http://127.0.0.1:8000/v1.")
    return Teacher(openai.OpenAI(base_url=url, api_key=api_key or "none", max_retries=5, timeout=300.0), model)
