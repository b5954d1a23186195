"""The library without a server: one answer at once, one as it comes."""

from headway import LLM

if __name__ == "__main__":  # the engine may be a spawned process, which imports this file again
    llm = LLM("smollm2-135m")
    print(llm.chat([{"role": "user", "content": "What is the capital of France?"}]))
    for piece in llm.chat([{"role": "user", "content": "Name three rivers."}], stream=True):
        print(piece, end="", flush=True)
    print()
