"""The results in one JSON file, complete after every item: {"about": …, "parts": {part: {item: …}}}."""

import json
import os


class Store:
    """Results of other sources, versions or GPUs are moved aside, to a file with their key."""

    def __init__(self, path, about):
        self.path, self.data = path, {"about": about, "parts": {}}
        if path.exists():
            found = json.loads(path.read_text())
            if found["about"]["key"] == about["key"]:
                self.data = found
            else:
                path.rename(path.with_stem(f"{path.stem}-{found['about']['key']}"))

    def done(self, part, item, stamp):
        """Whether the item ran without a failure, in the state that `stamp` stands for."""
        row = self.data["parts"].get(part, {}).get(item)
        return row is not None and row["stamp"] == stamp and not row["result"].get("failures")

    def results(self, part):
        """{item: its result} of what has run."""
        return {item: row["result"] for item, row in self.data["parts"].get(part, {}).items()}

    def add(self, part, item, stamp, result):
        """Keep a result; the file is replaced in one step, so that none is half written."""
        rows = self.data["parts"].setdefault(part, {})
        rows[item] = {"stamp": stamp, "result": result}
        self.save()

    def missing(self, part, reason):
        """Note why a part is not run; "" if it is."""
        self.data["missing"] = {**self.data.get("missing", {}), part: reason}
        self.save()

    def save(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(partial, self.path)
