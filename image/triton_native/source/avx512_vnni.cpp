// The step for CPUs with AVX512-VNNI that have no instructions for bf16.
#define NATIVE_LEVEL avx512_vnni
#define NATIVE_BF16 0
#define NATIVE_TILES 0
#define NATIVE_WORDS 1
#include "llama.h"
