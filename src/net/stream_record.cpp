#include "net/stream_record.h"

#include <google/protobuf/io/coded_stream.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "tessera/base/bytes.h"

namespace tessera::net {
namespace {

using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

constexpr uint8_t kRecordField = (1 << 3) | 2;  // StreamRecord.record: field 1, length-delimited
constexpr size_t kTagBytes = MessageTagger::kTagBytes;

std::string_view text_of(const grpc::Slice& slice) {
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

Status malformed(const char* what) {
  return invalid_argument(
      "a record of the peer stream is malformed ({}); use the same version of Tessera on both "
      "sides",
      what);
}

// The bytes [from, from + size) of `slices`, which must be there.
void copy_out(const std::vector<grpc::Slice>& slices, size_t from, size_t size, char* out) {
  for (const grpc::Slice& slice : slices) {
    if (from >= slice.size()) {
      from -= slice.size();
      continue;
    }
    const size_t part = std::min(size, slice.size() - from);
    std::memcpy(out, slice.begin() + from, part);
    out += part;
    size -= part;
    from = 0;
    if (size == 0) return;
  }
}

// What is behind the first `skipped` bytes, by reference.
std::vector<grpc::Slice> behind(std::vector<grpc::Slice> slices, size_t skipped) {
  std::vector<grpc::Slice> rest;
  rest.reserve(slices.size());
  for (grpc::Slice& slice : slices) {
    if (skipped >= slice.size()) {
      skipped -= slice.size();
    } else if (skipped > 0) {
      rest.push_back(slice.sub(skipped, slice.size()));
      skipped = 0;
    } else {
      rest.push_back(std::move(slice));
    }
  }
  return rest;
}

// How many bytes StreamRecord has in front of its record; 0 if the message is not exactly one
// record field.
size_t envelope_bytes(const char* start, size_t available, size_t message_bytes) {
  if (available == 0 || static_cast<uint8_t>(start[0]) != kRecordField) return 0;
  CodedInputStream stream(reinterpret_cast<const uint8_t*>(start) + 1,
                          static_cast<int>(available - 1));
  uint64_t record_bytes = 0;
  if (!stream.ReadVarint64(&record_bytes)) return 0;
  const size_t envelope = 1 + static_cast<size_t>(stream.CurrentPosition());
  return record_bytes == message_bytes - envelope ? envelope : 0;
}

}  // namespace

grpc::ByteBuffer RecordSealer::seal(const Record& record, grpc::Slice content) {
  ByteWriter header;
  header.number(static_cast<uint8_t>(record.kind));
  header.number(record.id);
  header.number(record.position);
  header.number(record.sent_at_ms);
  header.number(record.patience_ms);
  tagger_.begin();
  tagger_.add(header.bytes());
  tagger_.add(text_of(content));
  const MessageTagger::Tag tag = tagger_.finish();

  uint8_t start[kRecordEnvelopeBytes];
  start[0] = kRecordField;
  uint8_t* end =
      CodedOutputStream::WriteVarint64ToArray(kRecordHeaderBytes + content.size(), start + 1);
  end = std::copy(tag.begin(), tag.end(), end);
  end = std::copy(header.bytes().begin(), header.bytes().end(), end);
  const grpc::Slice slices[] = {grpc::Slice(start, static_cast<size_t>(end - start)),
                                std::move(content)};
  return grpc::ByteBuffer(slices, slices[1].size() > 0 ? 2 : 1);
}

StatusOr<ReceivedRecord> RecordOpener::open(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  const size_t bytes = message.Length();
  if (!message.Dump(&slices).ok()) return malformed("it can't be read");
  char start[kRecordEnvelopeBytes];
  const size_t available = std::min(bytes, sizeof(start));
  copy_out(slices, 0, available, start);
  const size_t envelope = envelope_bytes(start, available, bytes);
  if (envelope == 0) return malformed("its envelope");
  if (bytes - envelope < kRecordHeaderBytes) return malformed("too short");

  ReceivedRecord received;
  received.content = behind(std::move(slices), envelope + kRecordHeaderBytes);
  received.content_bytes = bytes - envelope - kRecordHeaderBytes;
  MessageTagger::Tag tag;
  std::memcpy(tag.data(), start + envelope, kTagBytes);
  const std::string_view header(start + envelope + kTagBytes, kRecordHeaderBytes - kTagBytes);
  tagger_.begin();
  tagger_.add(header);
  for (const grpc::Slice& slice : received.content) tagger_.add(text_of(slice));
  if (!tagger_.check(tag)) {
    return Status(absl::StatusCode::kUnauthenticated,
                  "a record of the peer stream was changed, repeated or left out on the way");
  }
  if (received.content_bytes > kChunkBytes) return malformed("too long");
  ByteReader reader(header);
  const auto kind = reader.number<uint8_t>();
  received.record.kind = static_cast<RecordKind>(kind);
  received.record.id = reader.number<uint64_t>();
  received.record.position = reader.number<uint64_t>();
  received.record.sent_at_ms = reader.number<uint64_t>();
  received.record.patience_ms = reader.number<uint32_t>();
  if (kind < 1 || kind > static_cast<uint8_t>(RecordKind::kAdmission)) return malformed("its kind");
  return received;
}

}  // namespace tessera::net
