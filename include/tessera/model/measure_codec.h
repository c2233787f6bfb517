// Measures the boundary's codec on a device: a microbatch's tensor to its payload and back, beside a
// copy of the same bytes. For tessera-bench. No torch here.
#pragma once

#include <cstdint>
#include <string>

#include "tessera/base/codec.h"
#include "tessera/base/status.h"
#include "tessera/model/measure.h"

namespace tessera::model {

struct CodecCase {
  Codec codec = Codec::kInt4;
  uint64_t rows = 0;   // tokens of a microbatch
  uint64_t width = 0;  // numbers of each that cross the boundary
};

struct CodecMeasurement {
  uint64_t payload_bytes = 0;
  double encode_seconds = 0;         // to nearest, normalised first: activations
  double encode_random_seconds = 0;  // rounded stochastically: gradients
  double decode_seconds = 0;
  // Of a copy that reads and writes as many bytes in all as the encoder and the decoder must: the
  // fp32 tensor once, the payload once.
  double copy_seconds = 0;
};

// On random numbers.
StatusOr<CodecMeasurement> measure_codec(const CodecCase& codec_case, const std::string& device,
                                         const MeasureOptions& options);

}  // namespace tessera::model
