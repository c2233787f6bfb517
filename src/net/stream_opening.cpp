#include "net/stream_opening.h"

#include <algorithm>
#include <utility>

#include "net/wire.h"

namespace tessera::net {
namespace {

enum class StreamDirection : uint8_t { kFrames = 0, kAnswers = 1 };

struct OpeningText {
  uint32_t version = kStreamVersion;
  std::string public_key;
  template <class A>
  void fields(A& a) {
    a("version", version)("public_key", public_key);
  }
};

std::string opening_of(const KeyExchange& exchange) {
  return encode(OpeningText{kStreamVersion, std::string(exchange.public_key())});
}

StatusOr<StreamKeys> agree(const KeyExchange& mine, std::string_view other_opening,
                           const Signature& caller_signature, const std::string& answer) {
  OpeningText other;
  if (!decode(other_opening, &other) || other.version != kStreamVersion) {
    return invalid_argument(
        "the other side opens the peer stream in another way; use the same version of Tessera on "
        "both sides");
  }
  const auto key_of = [&](StreamDirection direction) {
    Encoder context;
    context.write(std::string("tessera stream 1"));
    context.write(direction);
    context.write(caller_signature);
    context.write(answer);
    return mine.agree(other.public_key, context.take());
  };
  const auto frames = key_of(StreamDirection::kFrames);
  const auto answers = key_of(StreamDirection::kAnswers);
  if (!frames || !answers) return invalid_argument("the other side's key for the stream is no key");
  return StreamKeys{*frames, *answers};
}

template <class Metadata>
std::string value_of(const Metadata& metadata, const char* name) {
  const auto found = metadata.find(name);
  if (found == metadata.end()) return {};
  return std::string(found->second.data(), found->second.size());
}

}  // namespace

CallerOpening::CallerOpening(RequestSigner& signer, const NodeId& receiver,
                             const std::string& run_id)
    : receiver_(receiver),
      opening_(opening_of(exchange_)),
      header_(signer.sign(kExchangeMethod, receiver, run_id, "", digest_of(opening_))) {}

void CallerOpening::add_metadata(grpc::ClientContext* context) const {
  context->AddMetadata(kStreamMetadata, opening_);
  context->AddMetadata(kAuthMetadata, encode(header_));
}

StatusOr<StreamKeys> CallerOpening::finish(const grpc::ClientContext& context) const {
  const auto& metadata = context.GetServerInitialMetadata();
  const std::string answer = value_of(metadata, kStreamMetadata);
  const std::string proof = value_of(metadata, kAnswerMetadata);
  Signature signature{};
  bool fits = proof.size() == signature.size();
  if (fits) {
    std::copy(proof.begin(), proof.end(), signature.begin());
    fits = verify(receiver_,
                  signed_answer_bytes(kExchangeMethod, header_.signature, digest_of(answer)),
                  signature);
  }
  if (!fits) {
    return Status(absl::StatusCode::kUnauthenticated,
                  fmt::format("the stream's opening is not signed by node {}: another node answers "
                              "at this address, or it was changed on the way",
                              receiver_.brief()));
  }
  return agree(exchange_, answer, header_.signature, answer);
}

StatusOr<AcceptedOpening> accept_opening(RequestVerifier& verifier, const KeyPair& key,
                                         grpc::ServerContextBase* context) {
  const auto& metadata = context->client_metadata();
  const std::string opening = value_of(metadata, kStreamMetadata);
  TESSERA_ASSIGN_OR_RETURN(const AuthHeader header,
                           verifier.verify(kExchangeMethod, value_of(metadata, kAuthMetadata),
                                           digest_of(opening)));
  const KeyExchange exchange;
  const std::string answer = opening_of(exchange);
  TESSERA_ASSIGN_OR_RETURN(const StreamKeys keys,
                           agree(exchange, opening, header.signature, answer));
  const Signature proof =
      key.sign(signed_answer_bytes(kExchangeMethod, header.signature, digest_of(answer)));
  context->AddInitialMetadata(kStreamMetadata, answer);
  context->AddInitialMetadata(kAnswerMetadata,
                              std::string(reinterpret_cast<const char*>(proof.data()), proof.size()));
  return AcceptedOpening{ports::Caller{header.node, header.session, context->peer()}, keys};
}

}  // namespace tessera::net
