#include "tessera/base/large_vector.h"

#include <sys/mman.h>

#include <cstdint>

namespace tessera {

void prefer_huge_pages(void* begin, size_t bytes) {
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto from = (reinterpret_cast<uintptr_t>(begin) + kHugePage - 1) / kHugePage * kHugePage;
  const auto to = (reinterpret_cast<uintptr_t>(begin) + bytes) / kHugePage * kHugePage;
  if (from < to) (void)::madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
}

}  // namespace tessera
