"""The library without a server: one answer at once, one as it comes."""

from headway import LLM

if __name__ == "__main__":  # the engine may be a spawned process, which imports this file again
    llm = LLM("smollm2-135m")
    print(llm.chat([{"role": "user", "content": "Why is the sky blue?"}], temperature=0.2))
    for piece in llm.chat([{"role": "user", "content": "Name three rivers."}], stream=True, temperature=0.2, max_tokens=64):
        print(piece, end="", flush=True)
    print()
