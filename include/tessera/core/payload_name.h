// The name of a boundary payload: what receipts sign and what it is stored under. It covers the exponent and the bytes.
// Small payloads are one blob, larger ones an object; the name is the blob's or the object's.
#pragma once

#include <string>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/core/stage_state.h"

namespace tessera::core {

// i32 exponent, then the bytes.
std::string stored_form(const BoundaryPayload& payload);
StatusOr<BoundaryPayload> payload_from(std::string stored);
bool is_one_blob(size_t stored_bytes);
// Zero for an empty payload: there is none.
Digest name_of(const BoundaryPayload& payload);

}  // namespace tessera::core
