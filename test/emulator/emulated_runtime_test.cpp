// The emulated CUDA runtime: memory, streams, captured graphs, architectures, and what kernels may not do to memory.
#include <string>
#include <vector>

#include "emulator/launch.h"
#include "prims/mma.h"
#include "test.h"

using namespace qformer;
using namespace qformer::cuda;

namespace {

template <class T>
T* allocate(size_t count) {
  void* p = nullptr;
  CHECK_EQ(cudaMalloc(&p, count * sizeof(T)), cudaSuccess);
  return static_cast<T*>(p);
}

bool contains(const std::string& text, const char* part) {
  if (text.find(part) != std::string::npos) return true;
  test::fail(__FILE__, __LINE__, "'" + text + "' does not say '" + part + "'");
  return false;
}

}  // namespace

namespace qformer::cuda {

QF_KERNEL void add_one(Global<float> x) {
  const int i = static_cast<int>(threadIdx.x);
  x.store(i, x[i] + 1.0f);
}
QF_KERNEL void read_at(Global<const float> x, Global<float> out, int i) { out.store(0, x[i]); }
QF_KERNEL void read_pair(Global<const float> x, Global<float> out, int i) { out.store(0, x.load_vec<2>(i)[0]); }
QF_KERNEL void multiply_bf16(Global<float> out) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  mma_m16n8k16<BFloat16>(d, a, b);
  out.store(threadIdx.x, d[0]);
}
QF_KERNEL void touch_shared(Global<float> out, int count) {
  SharedMemory shared;
  const Shared<float> x = shared.take<float>(count);
  x.store(count - 1, 1.0f);
  out.store(0, x[count - 1]);
}

}  // namespace qformer::cuda

TEST("a kernel's bad access names the allocation") {
  float* x = allocate<float>(10);
  float* out = allocate<float>(1);
  cudaMemset(x, 0, 40);
  CHECK_EQ(emulator::run(read_at, 1, 1, 0, x, out, 9), "");
  contains(emulator::run(read_at, 1, 1, 0, x, out, 10), "at byte 40 of an allocation of 40 bytes");
  contains(emulator::run(read_at, 1, 1, 0, x, out, -1), "global read of 4 bytes");
  contains(emulator::run(read_at, 1, 1, 0, nullptr, out, 0), "a null pointer");
  float on_the_host = 0;
  contains(emulator::run(read_at, 1, 1, 0, &on_the_host, out, 0), "not device memory");
  contains(emulator::run(read_pair, 1, 1, 0, x, out, 3), "not a multiple of 8");
  cudaFree(x);
  contains(emulator::run(read_at, 1, 1, 0, x, out, 0), "in freed memory");
  cudaFree(out);
}

TEST("memory that nobody wrote is reported when read and when downloaded") {
  float* x = allocate<float>(8);
  float* out = allocate<float>(1);
  float host[8];
  contains(emulator::run(read_at, 1, 1, 0, x, out, 0), "nobody has written");
  cudaMemset(x, 0, 16);
  CHECK_EQ(cudaMemcpy(host, x, 16, cudaMemcpyDeviceToHost), cudaSuccess);
  CHECK_EQ(cudaMemcpy(host, x, 32, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  contains(cudaGetErrorString(cudaErrorInvalidValue), "byte 16 was never written");
  cudaFree(x);
  cudaFree(out);
}

TEST("a lease makes bounds exact and old contents uninitialised") {
  float* x = allocate<float>(16);
  float* out = allocate<float>(1);
  cudaMemset(x, 0, 64);
  emulator::lease(x, 40);
  contains(emulator::run(read_at, 1, 1, 0, x, out, 0), "nobody has written");
  contains(emulator::run(read_at, 1, 1, 0, x, out, 10), "of an allocation of 40 bytes");
  emulator::lease(x, 64);
  cudaMemset(x, 0, 64);
  CHECK_EQ(emulator::run(read_at, 1, 1, 0, x, out, 15), "");
  cudaFree(x);
  cudaFree(out);
}

TEST("copies out of bounds are refused and say why") {
  float* x = allocate<float>(4);
  const float host[8] = {};
  CHECK_EQ(cudaMemcpy(x, host, 32, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  contains(cudaGetErrorString(cudaErrorInvalidValue), "of an allocation of 16 bytes");
  CHECK_EQ(cudaFree(x + 1), cudaErrorInvalidValue);
  CHECK_EQ(cudaFree(x), cudaSuccess);
  CHECK_EQ(cudaFree(x), cudaErrorInvalidValue);
}

TEST("a fault is sticky until it is taken, and its text is the report") {
  float* x = allocate<float>(4);
  CHECK_EQ(emulator::launch("reader", nullptr, 1, 1, 0, [x] { read_at(x, x, 0); }), cudaErrorLaunchFailure);
  contains(cudaGetErrorString(cudaGetLastError()), "reader: global memory read that nobody has written");
  CHECK_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
  emulator::FaultKind kind;
  contains(emulator::take_fault(&kind), "reader");
  CHECK(kind == emulator::FaultKind::kUninitialised);
  CHECK_EQ(cudaDeviceSynchronize(), cudaSuccess);
  cudaFree(x);
}

TEST("a captured graph runs its operations at every launch and not before") {
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  float* x = allocate<float>(4);
  void* pinned = nullptr;
  cudaHostAlloc(&pinned, 16, cudaHostAllocDefault);
  auto* host = static_cast<float*>(pinned);
  cudaMemset(x, 0, 16);
  CHECK_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), cudaSuccess);
  CHECK_EQ(emulator::launch("add_one", stream, 1, 4, 0, [x] { add_one(x); }), cudaSuccess);
  CHECK_EQ(cudaMemcpyAsync(host, x, 16, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  CHECK_EQ(cudaGraphInstantiateWithFlags(&exec, graph, 0), cudaSuccess);
  cudaGraphDestroy(graph);
  host[0] = -1.0f;
  CHECK_EQ(host[0], -1.0f);
  cudaGraphLaunch(exec, stream);
  cudaGraphLaunch(exec, stream);
  CHECK_EQ(host[0], 2.0f);
  cudaGraphExecDestroy(exec);
  cudaFreeHost(pinned);
  cudaFree(x);
  cudaStreamDestroy(stream);
}

TEST("what a capture does not allow invalidates it") {
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaGraph_t graph;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  CHECK_EQ(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
  float* x = allocate<float>(1);
  float pageable = 0;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  CHECK_EQ(cudaMemcpyAsync(x, &pageable, 4, cudaMemcpyHostToDevice, stream), cudaErrorStreamCaptureUnsupported);
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
  cudaFree(x);
  cudaStreamDestroy(stream);
}

TEST("an architecture has its shared memory and its instructions") {
  float* out = allocate<float>(32);
  const struct {
    int arch, kilobytes;
  } limits[] = {{75, 64}, {80, 163}, {86, 99}, {89, 99}, {90, 227}};
  for (const auto& [arch, kilobytes] : limits) {
    emulator::set_arch(arch);
    int optin = 0;
    cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    CHECK_EQ(optin, kilobytes * 1024);
    CHECK_EQ(emulator::run(touch_shared, 1, 1, static_cast<size_t>(optin), out, optin / 4), "");
    contains(emulator::run(touch_shared, 1, 1, static_cast<size_t>(optin) + 4, out, optin / 4), "shared memory");
  }
  emulator::set_arch(75);
  contains(emulator::run(multiply_bf16, 1, 32, 0, out), "does not exist on sm_75");
  emulator::set_arch(80);
  CHECK_EQ(emulator::run(multiply_bf16, 1, 32, 0, out), "");
  cudaFree(out);
}

TEST("launches that no device takes are refused") {
  float* out = allocate<float>(1);
  contains(emulator::run(touch_shared, 1, 1025, 0, out, 1), "a block of 1025 threads");
  contains(emulator::run(touch_shared, dim3(1, 65536), 1, 0, out, 1), "a grid too large");
  contains(emulator::run(touch_shared, dim3(0), 1, 0, out, 1), "an empty grid");
  cudaFree(out);
}

TEST("memory runs out with an error and comes back") {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  void* p = nullptr;
  CHECK_EQ(cudaMalloc(&p, total), cudaErrorMemoryAllocation);
  CHECK_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  size_t after = 0;
  cudaMemGetInfo(&after, &total);
  CHECK_EQ(after, free);
}
