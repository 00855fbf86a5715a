#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace qformer {

MappedFile::MappedFile(std::string path, int fd, const uint8_t* data, int64_t size)
    : path_(std::move(path)), fd_(fd), data_(data), size_(size) {}

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(ErrorCode::kIo, "%s: %s", path.c_str(), std::strerror(errno));
  struct stat info {};
  const char* problem = nullptr;
  if (::fstat(fd, &info) != 0) {
    problem = std::strerror(errno);
  } else if (!S_ISREG(info.st_mode)) {
    problem = S_ISDIR(info.st_mode) ? "is a directory, not a file" : "is not a regular file";
  } else if (info.st_size == 0) {
    problem = "is empty";
  }
  void* data =
      problem == nullptr ? ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0) : nullptr;
  if (data == MAP_FAILED) problem = std::strerror(errno);
  if (problem != nullptr) {
    ::close(fd);
    fail(ErrorCode::kIo, "%s: %s", path.c_str(), problem);
  }
#ifdef MADV_HUGEPAGE
  // Where the file system can, what is read from now on comes in pages of 2 MiB. On a guest whose page tables the host
  // keeps by hand (PVM) the first pass over a file already in memory then reads 27 GB/s instead of 2 to 18.
  ::madvise(data, static_cast<size_t>(info.st_size), MADV_HUGEPAGE);
#endif
  return std::shared_ptr<MappedFile>(new MappedFile(path, fd, static_cast<const uint8_t*>(data), info.st_size));
}

MappedFile::~MappedFile() {
  ::munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
  ::close(fd_);
}

const uint8_t* MappedFile::bytes(int64_t offset, int64_t length) const {
  if (offset < 0 || length < 0 || offset > size_ || length > size_ - offset) {
    fail(ErrorCode::kInvalidArgument, "%s: bytes [%lld, +%lld) are outside the file of %lld bytes", path_.c_str(),
         static_cast<long long>(offset), static_cast<long long>(length), static_cast<long long>(size_));
  }
  struct stat info {};
  if (::fstat(fd_, &info) != 0 || info.st_size < size_)
    fail(ErrorCode::kIo, "%s: the file shrank while in use", path_.c_str());
  return data_ + offset;
}

Tensor MappedFile::tensor(Device& device, int64_t offset, const Shape& shape, int32_t dtype) {
  const int64_t element = static_cast<int64_t>(qf_dtype_size(dtype));
  int64_t length = 0;
  if (__builtin_mul_overflow(shape.count(), element, &length)) {
    fail(ErrorCode::kShape, "shape %s has too many elements", shape.text().c_str());
  }
  const uint8_t* data = bytes(offset, length);
  if (device.backend->host_memory != 0 && reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(element) == 0) {
    return Tensor(Storage::borrow(device, data, length, shared_from_this()), shape, dtype);
  }
  Tensor copy = empty_tensor(device, shape, dtype);
  upload(copy, data, length);
  return copy;
}

}  // namespace qformer
