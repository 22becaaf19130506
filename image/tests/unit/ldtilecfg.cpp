// Prints the 64 bytes that the first LDTILECFG of a library would load, on a CPU without AMX: the
// instruction raises SIGILL there, and the handler decodes its memory operand.
//
//   ldtilecfg LIBRARY LEVEL      exit status 0 and the bytes in hex; 3 if no LDTILECFG was met
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

static uint64_t value_of(const ucontext_t* context, int number) {
  static const int names[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context->uc_mcontext.gregs[names[number]]);
}

// The address of the memory operand of VEX.128.NP.0F38.W0 49 /0, or 0 if it is something else.
static uint64_t operand(const ucontext_t* context) {
  const uint8_t* at = reinterpret_cast<const uint8_t*>(context->uc_mcontext.gregs[REG_RIP]);
  if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || at[2] != 0x78 || at[3] != 0x49) return 0;
  const int high_base = at[1] & 0x20 ? 0 : 8, high_index = at[1] & 0x40 ? 0 : 8;
  const int mode = at[4] >> 6, low = at[4] & 7;
  if (mode == 3 || (at[4] & 0x38) != 0) return 0;
  const uint8_t* rest = at + 5;
  uint64_t address = 0;
  if (low == 4) {
    const int scale = *rest >> 6, index = ((*rest >> 3) & 7) | high_index, base = *rest & 7;
    ++rest;
    if (index != 4) address += value_of(context, index) << scale;
    if (base == 5 && mode == 0) {
      int32_t shift;
      memcpy(&shift, rest, 4);
      return address + shift;
    }
    address += value_of(context, base | high_base);
  } else if (low == 5 && mode == 0) {
    int32_t shift;
    memcpy(&shift, rest, 4);
    return reinterpret_cast<uint64_t>(rest + 4) + shift;
  } else {
    address = value_of(context, low | high_base);
  }
  if (mode == 1) address += static_cast<int8_t>(*rest);
  if (mode == 2) {
    int32_t shift;
    memcpy(&shift, rest, 4);
    address += shift;
  }
  return address;
}

static void trapped(int, siginfo_t*, void* context) {
  const uint64_t address = operand(static_cast<const ucontext_t*>(context));
  if (address == 0) _exit(4);
  for (int i = 0; i < 64; ++i) printf("%02x", reinterpret_cast<const uint8_t*>(address)[i]);
  fflush(stdout);
  _exit(0);
}

int main(int, char** words) {
  struct sigaction action = {};
  action.sa_sigaction = trapped;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  void* library = dlopen(words[1], RTLD_NOW);
  if (library == nullptr) return 2;
  auto check = reinterpret_cast<int32_t (*)(int32_t)>(dlsym(library, "native_check"));
  reinterpret_cast<int32_t (*)()>(dlsym(library, "native_level"))();
  check(atoi(words[2]));
  return 3;
}
