// Mapped files: any offset, shape and dtype over any content either gives a tensor inside the file or an Error.
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/cpu_backend.h"
#include "input.h"
#include "io/mapped_file.h"

using namespace qformer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool registered = (register_backend(cpu::cpu_backend()), true);
  (void)registered;
  fuzz::Input input(data, size);
  const int64_t offset = input.byte() % 4 == 0 ? input.wide() : input.byte();
  const int64_t length = input.byte() % 4 == 0 ? input.wide() : input.byte();
  const auto dtype = static_cast<int32_t>(input.byte() % QF_DTYPE_COUNT);
  const int shrink = input.byte() % 16;
  Shape shape;
  for (int axis = input.byte() % 5; axis > 0; --axis) {
    if (shape.rank() < kMaxRank) shape.push_back(input.extent(16));
  }
  const std::string content = input.rest();

  const int fd = memfd_create("fuzz", 0);
  if (write(fd, content.data(), content.size()) != static_cast<ssize_t>(content.size())) abort();
  try {
    auto file = MappedFile::open("/proc/self/fd/" + std::to_string(fd));
    if (shrink == 0 && ftruncate(fd, static_cast<off_t>(content.size() / 2)) != 0) abort();
    try {
      const uint8_t* bytes = file->bytes(offset, length);
      volatile uint8_t sum = 0;
      for (int64_t i = 0; i < length; ++i) sum = static_cast<uint8_t>(sum + bytes[i]);
    } catch (const Error&) {
    }
    Tensor x = file->tensor(find_device("cpu"), offset, shape, dtype);
    file.reset();
    fuzz::touch(x);
  } catch (const Error&) {
  }
  close(fd);
  return 0;
}
