#!/usr/bin/env python3
"""Exit code 0 when the server in this container is ready; what a HEALTHCHECK runs. Needs no package and no proxy."""

import http.client
import os
import sys


def main() -> int:
    port = int(os.environ.get("FEWSTEP_PORT") or 8000)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        print(answer.read(400).decode(errors="replace"))
        return 0 if answer.status == 200 else 1
    except OSError as error:
        print(f"nothing answers on 127.0.0.1:{port}: {error}")
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
