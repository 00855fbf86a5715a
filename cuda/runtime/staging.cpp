#include "runtime/staging.h"

#include <algorithm>
#include <cstring>

namespace qformer::cuda {

StagingRing::~StagingRing() {
  for (Segment& segment : segments_) {
    if (segment.done != nullptr) cudaEventDestroy(segment.done);
    if (segment.data != nullptr) cudaFreeHost(segment.data);
  }
}

// Makes a segment usable: allocated, and no transfer under way.
QfStatus StagingRing::prepare(Segment& segment) {
  if (segment.data == nullptr) {
    QfStatus status = check(cudaEventCreateWithFlags(&segment.done, cudaEventDisableTiming), "staging");
    if (status != QF_OK) return status;
    void* data = nullptr;
    status = check(cudaHostAlloc(&data, kSegmentBytes, cudaHostAllocDefault), "pinned staging memory");
    if (status != QF_OK) return status;
    segment.data = static_cast<char*>(data);
  }
  if (!segment.busy) return QF_OK;
  segment.busy = false;
  return check(cudaEventSynchronize(segment.done), "transfer");
}

QfStatus StagingRing::mark(Segment& segment) {
  segment.busy = true;
  return check(cudaEventRecord(segment.done, stream_), "transfer");
}

QfStatus StagingRing::next_segment() {
  if (offset_ > 0) {
    if (const QfStatus status = mark(segments_[current_]); status != QF_OK) return status;
  }
  current_ = (current_ + 1) % kSegments;
  offset_ = 0;
  return prepare(segments_[current_]);
}

QfStatus StagingRing::upload(void* dst, const void* src, size_t bytes) {
  const char* source = static_cast<const char*>(src);
  char* target = static_cast<char*>(dst);
  if (QfStatus status = prepare(segments_[current_]); status != QF_OK) return status;
  while (bytes > 0) {
    const size_t aligned = std::min((bytes + kAlignment - 1) / kAlignment * kAlignment, kSegmentBytes);
    if (offset_ + aligned > kSegmentBytes) {
      if (const QfStatus status = next_segment(); status != QF_OK) return status;
    }
    const size_t part = std::min(bytes, kSegmentBytes - offset_);
    char* pinned = segments_[current_].data + offset_;
    std::memcpy(pinned, source, part);
    const QfStatus status = check(cudaMemcpyAsync(target, pinned, part, cudaMemcpyHostToDevice, stream_), "upload");
    if (status != QF_OK) return status;
    offset_ += aligned;
    source += part;
    target += part;
    bytes -= part;
  }
  return QF_OK;
}

// Waits for the transfer into `segment` and copies it to where the caller wants it.
QfStatus StagingRing::drain(Segment& segment, char*& target, size_t& pending) {
  const size_t part = std::min(pending, kSegmentBytes);
  segment.busy = false;
  if (const QfStatus status = check(cudaEventSynchronize(segment.done), "download"); status != QF_OK) return status;
  std::memcpy(target, segment.data, part);
  target += part;
  pending -= part;
  return QF_OK;
}

QfStatus StagingRing::download(void* dst, const void* src, size_t bytes) {
  // Starts with a fresh segment, so that no upload waits in the ones that are filled here.
  if (const QfStatus status = next_segment(); status != QF_OK) return status;
  const char* source = static_cast<const char*>(src);
  char* target = static_cast<char*>(dst);
  size_t requested = bytes, pending = bytes;
  int oldest = current_, in_flight = 0;
  while (pending > 0) {
    if (requested > 0 && in_flight < kSegments) {
      Segment& segment = segments_[current_];
      if (const QfStatus status = prepare(segment); status != QF_OK) return status;
      const size_t part = std::min(requested, kSegmentBytes);
      QfStatus status = check(cudaMemcpyAsync(segment.data, source, part, cudaMemcpyDeviceToHost, stream_), "download");
      if (status == QF_OK) status = mark(segment);
      if (status != QF_OK) return status;
      source += part;
      requested -= part;
      current_ = (current_ + 1) % kSegments;
      ++in_flight;
      continue;
    }
    if (const QfStatus status = drain(segments_[oldest], target, pending); status != QF_OK) return status;
    oldest = (oldest + 1) % kSegments;
    --in_flight;
  }
  offset_ = 0;
  return QF_OK;
}

}  // namespace qformer::cuda
