"""llama.cpp without a compiler: npm's node-llama-cpp and its prebuilt library, in a temporary folder."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_VERSION = "3.22.1"
_PACKAGES = (f"node-llama-cpp@{_VERSION}", f"@node-llama-cpp/linux-x64@{_VERSION}")
_TIMEOUT_S = 300

_SCRIPT = """
import {readFileSync, writeFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: job.model});
const context = await model.createContext({
    contextSize: 512, threads: 2, ...(job.lora == null ? {} : {lora: {adapters: [{filePath: job.lora}]}})
});
const sequence = context.getSequence();
const tokens = job.texts.map((text) => model.tokenize(text, true));
const answers = [];
for (const prompt of job.prompts) {
    await sequence.clearHistory();
    const answer = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0})) {
        answer.push(token);
        if (answer.length >= job.maxTokens || job.endTokens.includes(token))
            break;
    }
    answers.push(answer);
}
writeFileSync(process.argv[3], JSON.stringify({answers, tokens}));
await llama.dispose();
"""


@dataclass(frozen=True)
class LlamaCppResult:
    """Token ids of the greedy answers, and of the tokenized texts."""

    answers: list[list[int]]
    tokens: list[list[int]]


class LlamaCpp:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "package.json").write_text('{"type": "module", "private": true}')
        words = ["npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", *_PACKAGES]
        subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=_TIMEOUT_S)
        (folder / "run.js").write_text(_SCRIPT)

    def run(
        self,
        model: Path,
        lora: Path | None,
        prompts: Sequence[Sequence[int]] = (),
        texts: Sequence[str] = (),
        *,
        max_tokens: int = 24,
        end_tokens: Sequence[int] = (),
    ) -> LlamaCppResult:
        """Answer prompts, given as token ids, and tokenize texts."""
        job, result = self._folder / "job.json", self._folder / "result.json"
        fields = {
            "model": str(model),
            "lora": None if lora is None else str(lora),
            "prompts": [list(prompt) for prompt in prompts],
            "texts": list(texts),
            "maxTokens": max_tokens,
            "endTokens": list(end_tokens),
        }
        job.write_text(json.dumps(fields))
        result.unlink(missing_ok=True)
        done = subprocess.run(
            ["node", "run.js", str(job), str(result)],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        assert result.exists(), done.stdout + done.stderr
        return LlamaCppResult(**json.loads(result.read_text()))


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> LlamaCpp:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm, which bring a compiled llama.cpp")
    return LlamaCpp(tmp_path_factory.mktemp("node-llama-cpp"))
