"""LitServe with its own batching: `max_batch_size` and `batch_timeout` of the API object, as it is documented."""

from typing import Any

import litserve

from benchmarks.peers.work import BATCH, PORT, WAIT_SECONDS, Work


class Pictures(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.work = Work()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": request["prompt"], "seed": request["seed"]}

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.work(requests)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Pictures(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS, api_path="/v1/images/generations")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, timeout=600, healthcheck_path="/ready"
    )
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
