#include "tessera/core/merge_messages.h"

#include <cstring>

#include "tessera/base/crypto.h"
#include "tessera/core/merge_state.h"

namespace tessera::core {
namespace {

template <class Commit>
std::string signed_content(const char* label, const Commit& commit, const std::string& run_id, StageIndex stage) {
  Encoder encoder;
  encoder.write(std::string(label));
  encoder.write(run_id);
  encoder.write(stage);
  const_cast<Commit&>(commit).content(encoder);
  return encoder.take();
}

}  // namespace

std::string UploadCommit::signed_bytes(const std::string& run_id, StageIndex stage) const {
  return signed_content("tessera upload 1", *this, run_id, stage);
}

std::string ShardCommit::signed_bytes(const std::string& run_id, StageIndex stage) const {
  return signed_content("tessera shard 1", *this, run_id, stage);
}

uint64_t merge_rounding_key(const std::string& run_id, StageIndex stage, Epoch target) {
  Encoder encoder;
  encoder.write(std::string("tessera rounding 1"));
  encoder.write(run_id);
  encoder.write(stage);
  encoder.write(target);
  const Digest digest = digest_of(encoder.take());
  uint64_t key;
  std::memcpy(&key, digest.bytes.data(), sizeof(key));
  return key;
}

const char* name_of(MergeFault fault) {
  switch (fault) {
    case MergeFault::kWrongReduction:
      return "wrong reduction";
    case MergeFault::kUnavailableWithoutCause:
      return "unavailable without cause";
    case MergeFault::kUnreadableUpload:
      return "unreadable upload";
    case MergeFault::kNotFinite:
      return "not finite";
    case MergeFault::kNorm:
      return "norm";
    case MergeFault::kCosine:
      return "cosine";
    case MergeFault::kUnreadableResult:
      return "unreadable result";
  }
  return "unknown";
}

}  // namespace tessera::core
