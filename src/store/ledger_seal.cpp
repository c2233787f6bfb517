#include "tessera/store/ledger_seal.h"

#include <fmt/format.h>

#include "tessera/base/bytes.h"
#include "tessera/core/events.h"

namespace tessera::store {
namespace {

constexpr std::string_view kMagic = "TSL1";
constexpr uint64_t kOnlyId = 0;  // of kinds that are never published one by one

struct SealedBody {
  uint64_t id = 0;
  std::string_view sealed;
};

// Nothing if this is no sealed body.
std::optional<SealedBody> parse(std::string_view body) {
  ByteReader reader(body);
  if (reader.raw(kMagic.size()) != kMagic) return std::nullopt;
  SealedBody parsed;
  parsed.id = reader.number<uint64_t>();
  parsed.sealed = reader.raw(reader.remaining());
  if (!reader.ok()) return std::nullopt;
  return parsed;
}

bool is_sealed_kind(const std::string& kind) { return kind == ports::kSnapshotKind || core::is_sealed_kind(kind); }

bool is_changed_by_sealing(const std::string& kind) {
  return kind == core::RunCreated::kName || kind == core::SecretUnsealed::kName || is_sealed_kind(kind);
}

Status wrong_key(const JournalRecord& record) {
  return data_loss("journal entry {} ('{}') was sealed with another key: put back the ledger.key it was written with",
                   record.sequence, record.kind);
}

template <class T>
void write_event(const T& event, JournalRecord* record) {
  record->body = encode(event);
  record->json = to_json(event);
}

}  // namespace

std::optional<Digest> LedgerSeal::key_of(const std::string& kind, uint64_t id) const {
  if (const auto found = published_.find({kind, id}); found != published_.end()) return found->second;
  if (!key_) return std::nullopt;
  ByteWriter context;
  context.text("tessera ledger entry");
  context.text(kind);
  context.number(id);
  return key_->derive(context.bytes());
}

Status LedgerSeal::seal(JournalRecord* record) const {
  if (!key_) return ok_status();
  if (record->kind == core::RunCreated::kName) {
    core::RunCreated created;
    if (!decode(record->body, &created)) return internal_error("a run_created that can't be read");
    ByteWriter secret;
    secret.number(created.secret);
    created.sealed_secret = tessera::seal(*key_of(record->kind, kOnlyId), record->kind, secret.bytes());
    created.secret = 0;
    write_event(created, record);
  } else if (record->kind == core::SecretUnsealed::kName) {
    core::SecretUnsealed unsealed;
    if (!decode(record->body, &unsealed)) return internal_error("a secret_unsealed that can't be read");
    unsealed.key = *key_of(unsealed.kind, unsealed.id);
    write_event(unsealed, record);
  } else if (is_sealed_kind(record->kind)) {
    uint64_t id = kOnlyId;
    if (const auto event = core::decode_event(record->kind, record->body)) id = core::seal_id(*event).value_or(kOnlyId);
    ByteWriter body;
    body.raw(kMagic.data(), kMagic.size());
    body.number(id);
    const std::string sealed = tessera::seal(*key_of(record->kind, id), record->kind, record->body);
    body.raw(sealed.data(), sealed.size());
    record->body = std::string(body.bytes());
    record->json = fmt::format("{{\"sealed\":true,\"id\":{}}}", id);
  }
  return ok_status();
}

StatusOr<LedgerSeal::Opened> LedgerSeal::open_secret_of_run(JournalRecord* record) const {
  core::RunCreated created;
  if (!decode(record->body, &created) || created.sealed_secret.empty()) return Opened::kPlain;
  const std::optional<Digest> key = key_of(record->kind, kOnlyId);
  if (!key) return Opened::kStillSealed;
  const std::optional<std::string> plain = open_sealed(*key, record->kind, created.sealed_secret);
  if (!plain) return wrong_key(*record);
  ByteReader secret(*plain);
  created.secret = secret.number<uint64_t>();
  created.sealed_secret.clear();
  if (!secret.done()) return wrong_key(*record);
  write_event(created, record);
  return Opened::kOpened;
}

StatusOr<LedgerSeal::Opened> LedgerSeal::open(JournalRecord* record) const {
  if (record->kind == core::RunCreated::kName) return open_secret_of_run(record);
  if (!is_sealed_kind(record->kind)) return Opened::kPlain;
  const std::optional<SealedBody> body = parse(record->body);
  if (!body) return Opened::kPlain;
  const std::optional<Digest> key = key_of(record->kind, body->id);
  if (!key) return Opened::kStillSealed;
  std::optional<std::string> plain = open_sealed(*key, record->kind, body->sealed);
  if (!plain) return wrong_key(*record);
  record->body = *std::move(plain);
  if (const auto event = core::decode_event(record->kind, record->body)) record->json = core::event_json(*event);
  return Opened::kOpened;
}

void LedgerSeal::learn(const JournalRecord& record) {
  core::SecretUnsealed unsealed;
  if (record.kind != core::SecretUnsealed::kName || !decode(record.body, &unsealed)) return;
  if (!unsealed.key.is_zero()) published_[{unsealed.kind, unsealed.id}] = unsealed.key;
}

namespace {

class SealedJournal final : public Journal {
 public:
  SealedJournal(std::unique_ptr<Journal> inner, SealKey key) : inner_(std::move(inner)), seal_(std::move(key)) {}

  Status append(std::vector<JournalRecord>* records) override {
    // Few are sealed: those alone are copied, and the caller has its own back afterwards.
    std::vector<std::pair<size_t, JournalRecord>> originals;
    Status status = ok_status();
    for (size_t i = 0; i < records->size() && status.ok(); ++i) {
      JournalRecord& record = (*records)[i];
      if (!is_changed_by_sealing(record.kind)) continue;
      originals.emplace_back(i, record);
      status = seal_.seal(&record);
    }
    if (status.ok()) status = inner_->append(records);
    for (auto& [i, original] : originals) {
      original.sequence = (*records)[i].sequence;
      (*records)[i] = std::move(original);
    }
    return status;
  }
  Status replay(uint64_t after, const std::function<Status(const JournalRecord&)>& visit) override {
    return inner_->replay(after, [&](const JournalRecord& record) -> Status {
      if (record.kind == ports::kSnapshotKind) return visit(record);  // passed over anyway
      if (record.kind != core::RunCreated::kName && !is_sealed_kind(record.kind)) return visit(record);
      JournalRecord opened = record;
      TESSERA_RETURN_IF_ERROR(seal_.open(&opened).status());
      return visit(opened);
    });
  }
  StatusOr<std::optional<JournalRecord>> newest(std::string_view kind, uint64_t through) override {
    TESSERA_ASSIGN_OR_RETURN(std::optional<JournalRecord> record, inner_->newest(kind, through));
    if (record) TESSERA_RETURN_IF_ERROR(seal_.open(&*record).status());
    return record;
  }
  uint64_t last_sequence() const override { return inner_->last_sequence(); }
  Status verify_chain() override { return inner_->verify_chain(); }

 private:
  const std::unique_ptr<Journal> inner_;
  const LedgerSeal seal_;
};

}  // namespace

std::unique_ptr<Journal> sealed_journal(std::unique_ptr<Journal> inner, SealKey key) {
  return std::make_unique<SealedJournal>(std::move(inner), std::move(key));
}

}  // namespace tessera::store
