"""What takes too long for a test was shown once, by a command that is there."""

import json

from proofs import PROOFS, RECORD


def test_every_long_proof_was_given_and_its_record_says_by_which_command_when_and_with_what() -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    assert recorded.keys() == PROOFS.keys()
    for name, one in recorded.items():
        assert one["command"] == f"python tests/proofs.py {name}" and one["date"] and one["shown"]
        assert {"torch", "llama-cpp-python"} <= one["versions"].keys()
