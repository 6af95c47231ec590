// Enough of CUDA for the project's kernels on the host: blocks run one after the other, and a block's threads are
// fibers that take turns, each up to its next barrier.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
using std::max;
using std::min;

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static uint3 threadIdx, blockIdx, blockDim, gridDim;
static unsigned char* dynamic_shared;

namespace emulation {
constexpr size_t kStack = 64 * 1024;
static std::vector<ucontext_t> fibers;
static std::vector<char> stacks;
static std::vector<int> exchanged;
static ucontext_t scheduler;
static unsigned current;
static std::vector<bool> ended;
static std::function<void()> body;

static void start() {
  body();
  ended[current] = true;
  swapcontext(&fibers[current], &scheduler);
}

static void run_block() {
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  fibers.resize(count);
  stacks.resize(count * kStack);
  exchanged.resize(count);
  ended.assign(count, false);
  for (unsigned fiber = 0; fiber < count; ++fiber) {
    getcontext(&fibers[fiber]);
    fibers[fiber].uc_stack.ss_sp = &stacks[fiber * kStack];
    fibers[fiber].uc_stack.ss_size = kStack;
    makecontext(&fibers[fiber], start, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (current = 0; current < count; ++current) {
      if (ended[current]) continue;
      threadIdx = {current % blockDim.x, current / blockDim.x % blockDim.y, current / (blockDim.x * blockDim.y)};
      swapcontext(&scheduler, &fibers[current]);
      running = true;
    }
  }
}
}  // namespace emulation

inline void __syncthreads() {
  const unsigned own = emulation::current;
  const uint3 index = threadIdx;
  swapcontext(&emulation::fibers[own], &emulation::scheduler);
  threadIdx = index;
}

inline int __shfl_up_sync(unsigned, int value, int offset) {  // called by the whole block
  const unsigned own = emulation::current;
  emulation::exchanged[own] = value;
  __syncthreads();
  const int other = own % 32 >= (unsigned)offset ? emulation::exchanged[own - offset] : value;
  __syncthreads();
  return other;
}

inline int atomicAdd(int* place, int value) {
  const int before = *place;
  *place += value;
  return before;
}

inline void atomicMin(int* place, int value) { *place = min(*place, value); }
inline void atomicMax(int* place, int value) { *place = max(*place, value); }

inline float widen_on_host(unsigned short half) {
  _Float16 value;
  std::memcpy(&value, &half, 2);
  return (float)value;
}

inline unsigned short narrow_on_host(float value) {
  const _Float16 half = (_Float16)value;
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

template <class... Arguments, size_t... Places>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Places...>) {
  kernel(*(std::remove_reference_t<Arguments>*)arguments[Places]...);
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), const unsigned* dimensions, void** arguments, unsigned shared) {
  std::vector<unsigned char> memory(shared + 1);
  dynamic_shared = memory.data();
  gridDim = {dimensions[0], dimensions[1], dimensions[2]};
  blockDim = {dimensions[3], dimensions[4], dimensions[5]};
  emulation::body = [=] { call(kernel, arguments, std::index_sequence_for<Arguments...>{}); };
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) emulation::run_block();
}

#define EMULATED(kernel)                                                                                  \
  extern "C" void emulate_##kernel(const unsigned* dimensions, void** arguments, unsigned shared) {       \
    launch(kernel, dimensions, arguments, shared);                                                        \
  }
