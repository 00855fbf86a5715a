// Memory of tensors: small ones are aligned, their own, and may be freed on any thread.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "core/graph.h"
#include "core/tensor.h"
#include "cpu/cpu_backend.h"
#include "test.h"

using namespace qformer;

namespace {

Device& cpu_device() {
  register_backend(cpu::cpu_backend());
  return find_device("cpu");
}

std::vector<Tensor> vectors(int64_t count, int64_t elements) {
  std::vector<Tensor> made;
  for (int64_t i = 0; i < count; ++i) made.push_back(empty_tensor(cpu_device(), Shape{elements}, QF_F32));
  return made;
}

}  // namespace

TEST("tensors of every small size are aligned and share no byte") {
  for (const int64_t elements : {0, 1, 31, 32, 33, 64}) {
    const std::vector<Tensor> made = vectors(50, elements);
    const size_t bytes = static_cast<size_t>(elements) * sizeof(float);
    for (size_t i = 0; i < made.size(); ++i) std::memset(made[i].data(), static_cast<int>(i), bytes);
    std::set<void*> places;
    for (size_t i = 0; i < made.size(); ++i) {
      CHECK_EQ(reinterpret_cast<uintptr_t>(made[i].data()) % 64, 0u);
      const auto* data = made[i].as<unsigned char>();
      CHECK(std::all_of(data, data + bytes, [i](unsigned char byte) { return byte == i; }));
      places.insert(made[i].data());
    }
    CHECK_EQ(places.size(), made.size());
  }
}

TEST("more small tensors than wait for reuse, made on one thread and freed on another, serve both again") {
  for (int round = 0; round < 3; ++round) {
    std::vector<Tensor> made = vectors(3000, 8);
    std::thread([moved = std::move(made)]() mutable {
      moved.clear();
      const std::vector<Tensor> again = vectors(100, 8);
      CHECK_EQ(std::set<void*>({again.front().data(), again.back().data()}).size(), 2u);
    }).join();
  }
}

TEST("a small tensor of a recording lives in the memory of its graph and is reused inside it") {
  const Tensor outside = empty_tensor(cpu_device(), Shape{8}, QF_F32);
  Graph graph;
  graph.begin();
  void* first = empty_tensor(cpu_device(), Shape{8}, QF_F32).data();
  const Tensor second = empty_tensor(cpu_device(), Shape{8}, QF_F32);
  graph.end();
  CHECK(second.data() == first);
  CHECK(second.storage->belongs_to(graph.pool().get()));
  CHECK(!outside.storage->belongs_to(graph.pool().get()));
  CHECK(Graph::recording() == nullptr);
}

TEST("a recording is seen by its own thread only") {
  Graph graph;
  graph.begin();
  CHECK(Graph::recording() == &graph);
  std::thread([] { CHECK(Graph::recording() == nullptr); }).join();
  graph.end();
  CHECK(Graph::recording() == nullptr);
}
