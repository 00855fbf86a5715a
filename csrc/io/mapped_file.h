// A read-only memory-mapped file. Tensors made from it borrow its pages, so a checkpoint costs address space, not
// memory, and the kernel shares the pages between processes. POSIX; a file that is truncated while mapped faults when
// touched, as any mapping does.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/tensor.h"

namespace qformer {

class MappedFile : public std::enable_shared_from_this<MappedFile> {
 public:
  // IO when the path is missing, unreadable, empty or not a regular file.
  static std::shared_ptr<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  // Bytes [offset, offset + length). INVALID_ARGUMENT outside the file, IO when the file shrank since it was mapped.
  const uint8_t* bytes(int64_t offset, int64_t length) const;
  // The tensor stored at `offset`: in place where the device reads host memory and the offset is aligned to the element
  // size, else a copy.
  Tensor tensor(Device& device, int64_t offset, const Shape& shape, int32_t dtype);

 private:
  MappedFile(std::string path, int fd, const uint8_t* data, int64_t size);
  std::string path_;
  int fd_;
  const uint8_t* data_;
  int64_t size_;
};

}  // namespace qformer
