"""The step of Llama-shaped models in C++, for x86 CPUs with AVX512.

It is an alternative to torch that is never needed: `NativeRunner` says why a model, a CPU or an
installation does not fit, and then torch serves. Depends on torch and the standard library only.
"""
