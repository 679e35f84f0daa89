#!/usr/bin/env python3
"""Requests made from the server's own description, right ones and wrong ones; needs schemathesis from PyPI. The replies have to be as
described, and none may be a failure of the server."""
import os
import subprocess
import sys
import unittest

from harness import Server


class Schema(unittest.TestCase):
    def test_description(self):
        with Server("--answer-tokens", "8") as server:
            run = subprocess.run(
                [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run", server.url + "/openapi.json", "--seed", "1",
                 "--max-examples", os.environ.get("EXAMPLES", "5"), "--phases", "examples,fuzzing", "--generation-database", "none",
                 "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
                 "--exclude-path", "/openapi.json", "--request-timeout", "60", "--suppress-health-check", "all"],
                capture_output=True, text=True, cwd=os.path.dirname(os.environ["QWENMOE_SERVER"]))
            self.assertEqual(run.returncode, 0, run.stdout[-8000:] + run.stderr[-2000:])


if __name__ == "__main__":
    unittest.main()
