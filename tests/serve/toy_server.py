"""A server with the toy model as a program: `python -m tests.serve.toy_server FOLDER` prints its port."""

import socket
import sys

import uvicorn

from sam2_jax.predict.video import SAM2VideoPredictor
from sam2_jax.serve import app as serve_app
from sam2_jax.serve.limits import Limits
from tests import toy


def main() -> None:
    serve_app.warm_up = lambda worker, predictor: worker.call(lambda: None)
    app = serve_app.make_app(SAM2VideoPredictor(toy.model(), chunk=1), Limits(), folder=sys.argv[1])
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    # It listens before its port is known: whoever reads the port may connect at once.
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
