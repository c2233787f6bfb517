// The bodies of the calls that carry blobs: bytes as protobuf's (blobs.proto), made without copying a blob twice, and what is
// signed of them. A blob's digest is made anyhow, by who stores it and by who has asked for it; so the signatures cover those
// digests, and nobody has to digest a body beside its blobs.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <tessera/v1/blobs.pb.h>

#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::net {

// What a PutBlobs request is signed over: the digests of its contents, in order.
Digest contents_digest(const std::vector<Digest>& names);
// What a GetBlobs answer is signed over: the state of each blob, in order. The content of a found one is what the request, which
// the signature names too, asked for by digest; any other content is refused by the reader.
Digest states_digest(const std::vector<uint8_t>& states);
std::vector<uint8_t> states_of(const v1::GetBlobsAnswer& answer);
// Reads such an answer and returns what it must have been signed over (BodyDigests::answer).
StatusOr<Digest> read_blobs_answer(const grpc::ByteBuffer& bytes, v1::GetBlobsAnswer* answer);

// Adds a content to the bytes of a v1::PutBlobsRequest.
void append_content(std::string_view content, std::string* request);

// The bytes of a v1::GetBlobsAnswer. One thread.
class BlobsAnswerBody {
 public:
  void add(v1::BlobState state);
  void add_found(std::string content);
  const std::vector<uint8_t>& states() const { return states_; }
  grpc::ByteBuffer take();

 private:
  void flush();

  std::vector<uint8_t> states_;
  std::vector<grpc::Slice> slices_;
  std::string pending_;
};

}  // namespace tessera::net
