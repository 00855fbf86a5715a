// The host side of the GPU backend, on the emulated device: transfers, allocator, faults, poison, captured graphs,
// threads.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "prims/fault.h"
#include "prims/global.h"
#include "runtime/capture.h"
#include "runtime/device.h"
#include "runtime/launch.h"
#include "test.h"

extern "C" const QfBackend* qformer_backend(uint32_t abi);

using namespace qformer::cuda;

namespace {

const QfBackend& table() { return *qformer_backend(QF_BACKEND_ABI); }
std::string last_message() { return table().last_error(); }
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

DeviceContext& context() {
  DeviceContext* here = nullptr;
  CHECK_EQ(enter(0, &here), QF_OK);
  return *here;
}

// Device memory of `count` int32, freed at the end of the scope.
struct Numbers {
  explicit Numbers(size_t count) : count(count) {
    CHECK_EQ(table().alloc(0, bytes(), &data), QF_OK);
    CHECK_EQ(table().fill_zero(0, data, bytes()), QF_OK);
  }
  ~Numbers() { table().free(0, data, bytes()); }
  Numbers(const Numbers&) = delete;
  size_t bytes() const { return count * sizeof(int32_t); }
  Global<int32_t> global() const { return Global<int32_t>(static_cast<int32_t*>(data)); }
  void write(const std::vector<int32_t>& values) { CHECK_EQ(table().upload(0, data, values.data(), bytes()), QF_OK); }
  std::vector<int32_t> read() const {
    std::vector<int32_t> values(count);
    CHECK_EQ(table().download(0, values.data(), data, bytes()), QF_OK);
    return values;
  }
  void* data = nullptr;
  size_t count;
};

QF_KERNEL void add_one(Global<int32_t> x, int32_t count) {
  const int32_t i = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) x.store(i, x.load(i) + 1);
}

QF_KERNEL void complain(Global<int32_t> fault, int32_t code) { report_fault(fault, code); }

QfStatus launch_add_one(DeviceContext& here, const Numbers& x, int32_t count) {
  return launch("add_one", here.stream, add_one, dim3(static_cast<unsigned>(count + 31) / 32), dim3(32), 0, x.global(),
                count);
}

QfStatus launch_complain(DeviceContext& here, OpId op, int32_t code) {
  here.op = op;
  return launch("complain", here.stream, complain, dim3(1), dim3(1), 0, Global<int32_t>(here.fault()), code);
}

// Runs `body` in a process of its own; true when it returned true. For what ruins the device.
template <class Body>
bool in_child(Body body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST("the table is handed out for its own ABI only") {
  CHECK(qformer_backend(QF_BACKEND_ABI) != nullptr);
  CHECK(qformer_backend(QF_BACKEND_ABI + 1) == nullptr);
  CHECK_EQ(table().size, sizeof(QfBackend));
  CHECK_EQ(std::string(table().name), std::string("emulated"));
}

TEST("a device says what it is, and an index outside the list is refused") {
  QfDeviceInfo info;
  CHECK_EQ(table().device_info(0, &info), QF_OK);
  CHECK(contains(info.level, "sm_"));
  CHECK(info.memory >= info.free_memory && info.free_memory > 0);
  for (const int32_t bad : {-1, table().device_count()}) {
    CHECK_EQ(table().device_info(bad, &info), QF_INVALID_ARGUMENT);
    CHECK(contains(last_message(), "there is no device"));
  }
}

TEST("bytes survive the way to the device and back, whatever their number") {
  // The ring holds 4 segments of 64 KiB here: less, exactly one, more than one, and several times round.
  for (const size_t count : {size_t{1}, size_t{63}, size_t{16384}, size_t{16385}, size_t{300001}}) {
    Numbers numbers(count);
    std::vector<int32_t> values(count);
    std::iota(values.begin(), values.end(), 7);
    numbers.write(values);
    CHECK(numbers.read() == values);
  }
}

TEST("a caller may overwrite what it uploaded") {
  Numbers numbers(5);
  std::vector<int32_t> values{1, 2, 3, 4, 5};
  numbers.write(values);
  values.assign(5, -1);
  CHECK((numbers.read() == std::vector<int32_t>{1, 2, 3, 4, 5}));
}

TEST("transfers of nothing do nothing") {
  CHECK_EQ(table().upload(0, nullptr, nullptr, 0), QF_OK);
  CHECK_EQ(table().download(0, nullptr, nullptr, 0), QF_OK);
  CHECK_EQ(table().fill_zero(0, nullptr, 0), QF_OK);
  table().free(0, nullptr, 0);
}

TEST("block sizes waste an eighth at most and never shrink") {
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{512}, size_t{513}, size_t{100000}, size_t{123456789}}) {
    const size_t block = block_size_for(bytes);
    CHECK(block >= bytes && block % 512 == 0);
    CHECK(block <= bytes + bytes / 8 + 512);
  }
}

TEST("a freed block serves the next request of its size, but not a much smaller one") {
  DeviceContext& here = context();
  DeviceMemory& memory = here.device.memory;
  memory.set_caching(true);
  void *first = nullptr, *again = nullptr, *small = nullptr;
  CHECK_EQ(memory.allocate(here, 1 << 20, &first), QF_OK);
  memory.release(first);
  CHECK_EQ(memory.idle_bytes(), size_t{1} << 20);
  CHECK_EQ(memory.allocate(here, 1 << 10, &small), QF_OK);
  CHECK(small != first);
  CHECK_EQ(memory.allocate(here, (1 << 20) - 100, &again), QF_OK);
  CHECK(again == first);
  memory.release(again);
  memory.release(again);  // freeing twice is harmless
  memory.release(small);
  CHECK_EQ(memory.idle_bytes(), (size_t{1} << 20) + (1 << 10));
  memory.trim();
  CHECK_EQ(memory.idle_bytes(), size_t{0});
  memory.set_caching(false);
}

TEST("running out of memory names the bytes requested and free, after idle blocks were given back") {
  DeviceContext& here = context();
  DeviceMemory& memory = here.device.memory;
  memory.set_caching(true);
  void *block = nullptr, *huge = nullptr;
  CHECK_EQ(memory.allocate(here, 4096, &block), QF_OK);
  memory.release(block);
  const size_t requested = size_t{1} << 40;
  CHECK_EQ(memory.allocate(here, requested, &huge), QF_OUT_OF_MEMORY);
  CHECK(huge == nullptr);
  CHECK_EQ(memory.idle_bytes(), size_t{0});
  CHECK(contains(last_message(), std::to_string(requested) + " bytes"));
  CHECK(contains(last_message(), std::to_string(memory.available()) + " bytes are free"));
  CHECK_EQ(table().alloc(0, SIZE_MAX, &huge), QF_OUT_OF_MEMORY);
  CHECK_EQ(memory.allocate(here, 4096, &block), QF_OK);  // the device goes on
  memory.release(block);
  memory.set_caching(false);
}

TEST("the workspace grows and is the same for the next op") {
  DeviceContext& here = context();
  void *small = nullptr, *large = nullptr, *again = nullptr;
  CHECK_EQ(here.scratch(100, &small), QF_OK);
  CHECK_EQ(here.scratch(1 << 20, &large), QF_OK);
  CHECK_EQ(here.scratch(1000, &again), QF_OK);
  CHECK(again == large);
}

TEST("counters start at zero, and more than there are is an error") {
  DeviceContext& here = context();
  int32_t* counters = nullptr;
  CHECK_EQ(here.counters(64, &counters), QF_OK);
  int32_t values[64];
  std::memset(values, 1, sizeof values);
  CHECK_EQ(table().download(0, values, counters, sizeof values), QF_OK);
  for (const int32_t value : values) CHECK_EQ(value, 0);
  CHECK_EQ(here.counters(size_t{1} << 30, &counters), QF_INTERNAL);
}

TEST("what a kernel reports surfaces once, at the next synchronization, with the op's name") {
  DeviceContext& here = context();
  CHECK_EQ(launch_complain(here, OpId::gather_rows, kFaultIdOutOfRange), QF_OK);
  CHECK_EQ(table().synchronize(0), QF_INVALID_ARGUMENT);
  CHECK_EQ(last_message(), std::string("gather_rows: an id is outside its table"));
  CHECK_EQ(table().synchronize(0), QF_OK);

  Numbers numbers(3);
  CHECK_EQ(launch_complain(here, OpId::kv_append, kFaultSlotOutOfRange), QF_OK);
  int32_t values[3];
  CHECK_EQ(table().download(0, values, numbers.data, sizeof values), QF_INVALID_ARGUMENT);
  CHECK(contains(last_message(), "kv_append: a slot"));
  CHECK_EQ(table().download(0, values, numbers.data, sizeof values), QF_OK);
}

TEST("a fault belongs to the thread whose op reported it") {
  CHECK_EQ(launch_complain(context(), OpId::gather_rows, kFaultIdOutOfRange), QF_OK);
  std::thread([] { CHECK_EQ(table().synchronize(0), QF_OK); }).join();
  CHECK_EQ(table().synchronize(0), QF_INVALID_ARGUMENT);
}

TEST("threads have contexts of their own, and leave them to later threads") {
  DeviceContext *mine = &context(), *first = nullptr, *second = nullptr;
  std::thread([&] { first = &context(); }).join();
  std::thread([&] { second = &context(); }).join();
  CHECK(first != mine);
  CHECK(first == second);
}

TEST("memory outlives the thread that made it") {
  void* data = nullptr;
  const int32_t sent = 42;
  std::thread([&] {
    CHECK_EQ(table().alloc(0, sizeof sent, &data), QF_OK);
    CHECK_EQ(table().upload(0, data, &sent, sizeof sent), QF_OK);
    CHECK_EQ(table().synchronize(0), QF_OK);
  }).join();
  int32_t received = 0;
  CHECK_EQ(table().download(0, &received, data, sizeof received), QF_OK);
  CHECK_EQ(received, sent);
  table().free(0, data, sizeof sent);
}

TEST("a captured graph runs at its launch, and again with new inputs") {
  DeviceContext& here = context();
  Numbers numbers(40);
  CHECK_EQ(table().capture_begin(0), QF_OK);
  CHECK_EQ(launch_add_one(here, numbers, 40), QF_OK);
  CHECK_EQ(launch_add_one(here, numbers, 7), QF_OK);
  void* graph = nullptr;
  CHECK_EQ(table().capture_end(0, &graph), QF_OK);
  CHECK(graph != nullptr);
  CHECK_EQ(numbers.read()[0], 0);

  CHECK_EQ(table().graph_launch(0, graph), QF_OK);
  CHECK_EQ(numbers.read()[0], 2);
  numbers.write(std::vector<int32_t>(40, 10));
  CHECK_EQ(table().graph_launch(0, graph), QF_OK);
  CHECK_EQ(numbers.read()[6], 12);
  CHECK_EQ(numbers.read()[39], 11);
  table().graph_free(0, graph);
}

TEST("the workspace of a captured graph is its own") {
  DeviceContext& here = context();
  void *eager = nullptr, *captured = nullptr, *grown = nullptr, *again = nullptr, *graph = nullptr;
  CHECK_EQ(here.scratch(1000, &eager), QF_OK);
  CHECK_EQ(table().capture_begin(0), QF_OK);
  CHECK_EQ(here.scratch(1000, &captured), QF_OK);
  CHECK_EQ(here.scratch(2000, &grown), QF_OK);
  CHECK_EQ(here.scratch(1500, &again), QF_OK);
  CHECK_EQ(table().capture_end(0, &graph), QF_OK);
  CHECK(captured != eager && grown != captured && again == grown);
  table().graph_free(0, graph);
  CHECK_EQ(here.scratch(1000, &again), QF_OK);
  CHECK(again == eager);
}

TEST("what cannot be captured ends the capture with its reason, and the device goes on") {
  Numbers numbers(4);
  const int32_t values[4] = {1, 2, 3, 4};
  void* graph = &graph;
  CHECK_EQ(table().capture_begin(0), QF_OK);
  CHECK_EQ(table().capture_begin(0), QF_INVALID_ARGUMENT);
  CHECK_EQ(table().upload(0, numbers.data, values, sizeof values), QF_INVALID_ARGUMENT);
  CHECK_EQ(table().synchronize(0), QF_INVALID_ARGUMENT);
  CHECK_EQ(table().capture_end(0, &graph), QF_INVALID_ARGUMENT);
  CHECK(graph == nullptr);
  CHECK(contains(last_message(), "captured"));
  CHECK_EQ(table().capture_end(0, &graph), QF_INVALID_ARGUMENT);
  CHECK_EQ(table().upload(0, numbers.data, values, sizeof values), QF_OK);
  CHECK_EQ(numbers.read()[3], 4);
}

TEST("a graph is launched by the thread that captured it only") {
  Numbers numbers(1);
  void* graph = nullptr;
  CHECK_EQ(table().capture_begin(0), QF_OK);
  CHECK_EQ(launch_add_one(context(), numbers, 1), QF_OK);
  CHECK_EQ(table().capture_end(0, &graph), QF_OK);
  std::thread([&] { CHECK_EQ(table().graph_launch(0, graph), QF_INVALID_ARGUMENT); }).join();
  table().graph_free(0, graph);
}

TEST("a device fault poisons the device for every thread and says why") {
  CHECK(in_child([] {
    Numbers numbers(4);
    if (launch_add_one(context(), numbers, 5) != QF_DEVICE_FAULT && table().synchronize(0) != QF_DEVICE_FAULT)
      return false;
    int32_t value = 0;
    const bool refused = table().download(0, &value, numbers.data, sizeof value) == QF_DEVICE_FAULT;
    const bool explained = contains(last_message(), "failed earlier") && contains(last_message(), "add_one");
    bool elsewhere = false;
    std::thread([&] {
      void* data = nullptr;
      elsewhere = table().alloc(0, 4, &data) == QF_DEVICE_FAULT && data == nullptr;
    }).join();
    return refused && explained && elsewhere;
  }));
}

TEST("in debug mode an op that reports bad data fails itself") {
  set_debug_mode(true);
  const int32_t bad[2] = {0, 5};
  Numbers ids(2), source(4), target(4);
  CHECK_EQ(table().upload(0, ids.data, bad, sizeof bad), QF_OK);
  QfGatherRows args{};
  args.table = source.data;
  args.ids = static_cast<const int32_t*>(ids.data);
  args.y = target.data;
  args.rows = 2, args.cols = 2, args.tokens = 2, args.ld = 2;
  args.dtype = args.out_dtype = QF_F32;
  const QfStatus status = table().gather_rows(0, &args);
  CHECK(status == QF_INVALID_ARGUMENT || status == QF_UNSUPPORTED);
  CHECK(contains(last_message(), "gather_rows"));
  set_debug_mode(false);
}
