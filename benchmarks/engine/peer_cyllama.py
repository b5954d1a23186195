"""llama.cpp through cyllama, in the peers' environment: the same questions as ours.py. Usage: peer_cyllama.py MODEL THREADS cyllama.

Imports nothing of Headway. Decode leaves sampling out (ours has it in); prefill is decode calls of 512 tokens, logits of the last only.
"""

import json
import random
import sys
import time
from importlib.metadata import version

import cyllama.llama.llama_cpp as cy

_CHUNK = 512
_VOCAB = 49000


class Peer:
    def __init__(self, path: str, threads: int) -> None:
        cy.ggml_backend_load_all()
        cy.llama_backend_init()
        self.model = cy.LlamaModel(path, cy.LlamaModelParams(), verbose=False)
        self.threads = threads
        self.contexts: dict[int, object] = {}

    def context(self, sequences: int) -> object:
        """A context for that many sequences of up to 2,200 tokens; kept, because making one costs more than a measurement."""
        if sequences not in self.contexts:
            self.contexts.clear()
            params = cy.LlamaContextParams()
            params.n_ctx, params.n_batch, params.n_ubatch = 2304 * sequences, _CHUNK, _CHUNK
            params.n_seq_max, params.n_threads, params.n_threads_batch = sequences, self.threads, self.threads
            self.contexts[sequences] = cy.LlamaContext(self.model, params, verbose=False)
        self.contexts[sequences].kv_cache_clear()
        return self.contexts[sequences]

    def prefill(self, context: object, tokens: int, sequence: int = 0) -> None:
        for past in range(0, tokens, _CHUNK):
            count = min(_CHUNK, tokens - past)
            batch = cy.LlamaBatch(n_tokens=count, embd=0, n_seq_max=1)
            for k in range(count):
                batch.add(_token(), past + k, [sequence], past + k == tokens - 1)
            context.decode(batch)
        context.synchronize()

    def answer(self, ask: dict) -> tuple[int, float]:
        if ask["op"] == "prefill":
            context = self.context(1)
            begin = time.perf_counter()
            self.prefill(context, ask["tokens"])
            return ask["tokens"], time.perf_counter() - begin
        sequences, steps = ask["batch"], ask["tokens"]
        context = self.context(sequences)
        for sequence in range(sequences):
            self.prefill(context, ask["context"], sequence)
        batches = []
        for step in range(steps):
            batch = cy.LlamaBatch(n_tokens=sequences, embd=0, n_seq_max=1)
            for sequence in range(sequences):
                batch.add(_token(), ask["context"] + step, [sequence], True)
            batches.append(batch)
        begin = time.perf_counter()
        for batch in batches:
            context.decode(batch)
            context.synchronize()
        return steps * sequences, time.perf_counter() - begin


def _token() -> int:
    return random.randrange(100, _VOCAB)


def main() -> None:
    peer = Peer(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"ready": True, "version": f"cyllama {version('cyllama')}"}), flush=True)
    for line in sys.stdin:
        cpu = time.process_time()
        done, seconds = peer.answer(json.loads(line))
        print(json.dumps({"done": done, "seconds": seconds, "cpu_s": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
