#include "net/blob_bodies.h"

#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/slice.h>

#include <utility>

#include "net/wire.h"
#include "tessera/base/archive.h"
#include "tessera/base/crypto.h"

namespace tessera::net {
namespace {

using google::protobuf::internal::WireFormatLite;

// A content below this is copied beside what is around it: a slice of its own costs more.
constexpr size_t kOwnSliceBytes = 4096;

void append_varint(uint64_t value, std::string* bytes) {
  for (; value >= 0x80; value >>= 7) bytes->push_back(static_cast<char>(value | 0x80));
  bytes->push_back(static_cast<char>(value));
}

void append_tag(int field, WireFormatLite::WireType type, std::string* bytes) {
  append_varint(WireFormatLite::MakeTag(field, type), bytes);
}

}  // namespace

Digest contents_digest(const std::vector<Digest>& names) {
  Encoder encoder;
  encoder.write(std::string("tessera contents 1"));
  encoder.write(names);
  return digest_of(encoder.take());
}

Digest states_digest(const std::vector<uint8_t>& states) {
  Encoder encoder;
  encoder.write(std::string("tessera states 1"));
  encoder.write(states);
  return digest_of(encoder.take());
}

std::vector<uint8_t> states_of(const v1::GetBlobsAnswer& answer) {
  std::vector<uint8_t> states;
  for (const v1::BlobResult& blob : answer.blobs()) {
    // Every value is one byte: an unknown one is none of those that a server signs.
    states.push_back(v1::BlobState_IsValid(blob.state()) ? static_cast<uint8_t>(blob.state()) : uint8_t{255});
  }
  return states;
}

StatusOr<Digest> read_blobs_answer(const grpc::ByteBuffer& bytes, v1::GetBlobsAnswer* answer) {
  TESSERA_RETURN_IF_ERROR(parse(bytes, answer));
  return states_digest(states_of(*answer));
}

void append_content(std::string_view content, std::string* request) {
  append_tag(v1::PutBlobsRequest::kContentsFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, request);
  append_varint(content.size(), request);
  request->append(content);
}

void BlobsAnswerBody::add(v1::BlobState state) {
  states_.push_back(static_cast<uint8_t>(state));
  std::string fields;
  append_tag(v1::BlobResult::kStateFieldNumber, WireFormatLite::WIRETYPE_VARINT, &fields);
  append_varint(static_cast<uint64_t>(state), &fields);
  append_tag(v1::GetBlobsAnswer::kBlobsFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, &pending_);
  append_varint(fields.size(), &pending_);
  pending_ += fields;
}

void BlobsAnswerBody::add_found(std::string content) {
  states_.push_back(static_cast<uint8_t>(v1::BLOB_STATE_FOUND));
  std::string head;  // FOUND is 0, which is not written
  append_tag(v1::BlobResult::kContentFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, &head);
  append_varint(content.size(), &head);
  append_tag(v1::GetBlobsAnswer::kBlobsFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, &pending_);
  append_varint(head.size() + content.size(), &pending_);
  pending_ += head;
  if (content.size() < kOwnSliceBytes) {
    pending_ += content;
    return;
  }
  flush();
  slices_.push_back(owning_slice(std::move(content)));
}

void BlobsAnswerBody::flush() {
  if (!pending_.empty()) slices_.push_back(owning_slice(std::exchange(pending_, {})));
}

grpc::ByteBuffer BlobsAnswerBody::take() {
  flush();
  states_.clear();
  const std::vector<grpc::Slice> slices = std::exchange(slices_, {});
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace tessera::net
