// Carving of shared memory and the report of an access outside its piece.
#include "prims/shared.h"

namespace qformer::emulator {

void shared_range_fault(const SharedPlace& place, uint32_t bytes, const char* what, Site site) {
  const long long at = place.offset - place.begin;
  if (place.offset >= place.begin && place.offset + bytes <= place.end)
    kernel_fault(FaultKind::kAlignment, site, "shared %s of %u bytes at byte %lld, which is not a multiple of %u", what,
                 bytes, at, bytes);
  kernel_fault(FaultKind::kBounds, site, "shared %s of %u bytes at byte %lld of a piece of %u bytes", what, bytes, at,
               place.end - place.begin);
}

void carve(uint32_t piece, uint32_t begin, uint64_t bytes, Site site) {
  Block& block = *machine.current->block;
  if (begin + bytes > block.shared_bytes)
    kernel_fault(FaultKind::kBounds, site, "shared memory: %llu bytes from byte %u on, the launch gives %u",
                 static_cast<unsigned long long>(bytes), begin, block.shared_bytes);
  if (piece >= block.pieces.size()) {
    block.pieces.push_back({begin, static_cast<uint32_t>(bytes)});
    return;
  }
  const Piece& first = block.pieces[piece];
  if (first.begin != begin || first.bytes != bytes)
    kernel_fault(FaultKind::kDivergence, site,
                 "shared memory: this thread carves %llu bytes at %u as piece %u, another %u bytes at %u",
                 static_cast<unsigned long long>(bytes), begin, piece, first.bytes, first.begin);
}

}  // namespace qformer::emulator
