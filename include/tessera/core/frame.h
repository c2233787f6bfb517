// The bytes of a boundary frame (docs/formats/frame.md draws them): a fixed little-endian header, then pathway, repairs,
// token ids, payload (scales and codes as kernels/codec.h says).
#pragma once

#include <string>
#include <string_view>

#include "tessera/core/messages.h"
#include "tessera/core/run_spec.h"

namespace tessera::core {

inline constexpr uint32_t kFrameMagic = 0x52465354;  // "TSFR"
inline constexpr uint16_t kFrameVersion = 3;
inline constexpr size_t kFrameHeaderBytes = 96;
inline constexpr size_t kLeaseProofBytes = 72;  // of a forward frame: when the lease expires, and its signature

// Token ids take 1 byte up to vocabulary 256, 2 up to 65536, else 4.
uint32_t token_id_bytes(uint32_t vocab);

std::string encode_frame(const Frame& frame, uint32_t vocab);

// The lease that a forward frame says it works on, its lifetime unknown. Nothing shows yet that it is one.
Lease lease_of(const Frame& frame);

// Looks at the direction alone, and trusts nothing: false also for what is no frame.
bool is_backward(std::string_view frame);

// Checks every length before it allocates, the checksum, and that shape, kind, codec and run are this run's. On refusal
// `why` (if given) says what was expected and found.
Admission decode_frame(std::string_view bytes, const RunSpec& spec, uint64_t run, Frame* frame,
                       std::string* why = nullptr);

}  // namespace tessera::core
