"""Facts about fine-tuning files: recorded at upload, otherwise read from the file."""

from collections import OrderedDict

from adapters.jobs.files import FileStore
from adapters.jobs.records import StoredFile
from config.example_lines import ExampleError, ExampleFacts, ExampleLines, Method
from serve.jobs.errors import ExampleFileError

_MAX_KNOWN = 1024
_PIECE_BYTES = 1 << 20


class ExampleFiles:
    """Facts about files by their digest. All methods are thread-safe."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._known: OrderedDict[str, ExampleFacts] = OrderedDict()

    def learn(self, file: StoredFile, facts: ExampleFacts) -> None:
        """Record the facts about an uploaded file."""
        self._known[file.sha256] = facts
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def check(self, owner: str, file_id: str, param: str, method: Method) -> None:
        """Check that a job can use a file as its `param`: `training_file` or `validation_file`.

        Raises:
            UnknownIdError: No such file.
            ExampleFileError: Its purpose is not `fine-tune`, or its format does not fit the method.
        """
        file = self._files.get(owner, file_id, param=param)
        if file.purpose != "fine-tune":
            message = f"The file {file_id!r} has the purpose {file.purpose!r}; upload it with the purpose 'fine-tune'."
            raise ExampleFileError(message, f"invalid_{param}", param)
        try:
            facts = self._known.get(file.sha256) or self._read(owner, file)
            facts.check(method, is_training=param == "training_file")
        except ExampleError as error:
            code = f"invalid_{param}" if error.code == "invalid_file_format" else error.code
            raise ExampleFileError(str(error), code, param) from None

    def _read(self, owner: str, file: StoredFile) -> ExampleFacts:
        lines = ExampleLines()
        with self._files.open(owner, file.id) as content:
            while piece := content.read(_PIECE_BYTES):
                lines.write(piece)
        facts = lines.end()
        self.learn(file, facts)
        return facts
