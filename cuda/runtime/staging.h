// Host transfers of one stream through pinned memory.
//
// A copy from pageable memory would block, and the caller may reuse its buffer at once. So bytes are copied into a ring
// of pinned segments first and leave for the device from there: small uploads (a decode step's ids and positions)
// return without waiting, large ones (weights) overlap the copy into one segment with the transfer of another.
#pragma once

#include <cstddef>

#include "runtime/error.h"

namespace qformer::cuda {

class StagingRing {
 public:
  explicit StagingRing(cudaStream_t stream) : stream_(stream) {}
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  // `src` may be changed or freed when this returns; the bytes arrive in stream order.
  QfStatus upload(void* dst, const void* src, size_t bytes);
  // Waits for everything before it on the stream, then for the bytes.
  QfStatus download(void* dst, const void* src, size_t bytes);

 private:
  static constexpr int kSegments = 4;
#ifdef QF_EMULATED
  static constexpr size_t kSegmentBytes = size_t{64} << 10;  // small, so that tests go round the ring
#else
  static constexpr size_t kSegmentBytes = size_t{4} << 20;
#endif
  static constexpr size_t kAlignment = 256;

  struct Segment {
    char* data = nullptr;
    cudaEvent_t done = nullptr;  // recorded after the last transfer out of (into) the segment
    bool busy = false;
  };

  QfStatus prepare(Segment& segment);
  QfStatus mark(Segment& segment);
  QfStatus next_segment();
  QfStatus drain(Segment& segment, char*& target, size_t& pending);

  cudaStream_t stream_;
  Segment segments_[kSegments];
  int current_ = 0;
  size_t offset_ = 0;  // of the first unused byte in the current segment
};

}  // namespace qformer::cuda
