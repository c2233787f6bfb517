// The records of a peer stream (docs/formats/peer-stream.md): what they say, their bytes inside a
// gRPC message, and their tags.
//
//   0                16     17               25               33               41       45
//   +----------------+------+----------------+----------------+----------------+--------+---------+
//   | tag            | kind | id             | position       | sent_at        | patience| content |
//   +----------------+------+----------------+----------------+----------------+--------+---------+
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/base/stream_crypto.h"

namespace tessera::net {

inline constexpr size_t kRecordHeaderBytes = 45;
// Around the content in a gRPC message, at most.
inline constexpr size_t kRecordEnvelopeBytes = kRecordHeaderBytes + 16;
// Of one record. A backward waits for one forward chunk at most, so it is small; a larger one
// gains nothing (docs/performance.md).
inline constexpr size_t kChunkBytes = 256 << 10;

enum class RecordKind : uint8_t {
  kBegin = 1,      // of frame `id`: `position` is its size; with its first content
  kChunk = 2,      // more of it: `position` is the content's offset
  kCancel = 3,     // the rest of it will not come
  kAdmission = 4,  // the other way: `position` is the core::Admission of frame `id`
};

struct Record {
  RecordKind kind = RecordKind::kBegin;
  uint64_t id = 0;
  uint64_t position = 0;
  uint64_t sent_at_ms = 0;   // kBegin: by a clock of the sender's that only ever goes on
  uint32_t patience_ms = 0;  // kBegin: how long the sender waits for the admission from then on
};

// A record as it was received: its content is still the transport's memory.
struct ReceivedRecord {
  Record record;
  std::vector<grpc::Slice> content;
  size_t content_bytes = 0;
};

// Makes the messages of one direction, in order. Not thread-safe.
class RecordSealer {
 public:
  explicit RecordSealer(const Digest& key) : tagger_(key) {}
  // The content is not copied.
  grpc::ByteBuffer seal(const Record& record, grpc::Slice content);

 private:
  MessageTagger tagger_;
};

// Takes them apart at the other side. Not thread-safe; of no use after the first error.
class RecordOpener {
 public:
  explicit RecordOpener(const Digest& key) : tagger_(key) {}
  // INVALID_ARGUMENT for what is no record, UNAUTHENTICATED for one that is not the next one of
  // the other side.
  StatusOr<ReceivedRecord> open(const grpc::ByteBuffer& message);

 private:
  MessageTagger tagger_;
};

}  // namespace tessera::net
