#include "ctl/ledger_pull.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "common/daemon.h"
#include "ctl/ledger_files.h"
#include "tessera/base/files.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/links.h"

namespace tessera::apps {
namespace {

struct PullFlags {
  std::string orchestrator;
  std::string out;
  bool json = false;
};

struct Pulled {
  uint64_t entries = 0;  // new ones
  uint64_t last = 0;
  Digest chain;          // of the last
};

// The rest of an entry that is larger than a page.
Status complete(net::GrpcOrchestratorLink& link, uint64_t after, uint64_t bytes, std::string* body) {
  if (bytes > store::kMaxBodyBytes) return data_loss("entry {} is said to have {} bytes", after + 1, bytes);
  while (body->size() < bytes) {
    TESSERA_ASSIGN_OR_RETURN(const ports::LedgerPage part, link.read_ledger(after, body->size()));
    if (part.records.empty() || part.records[0].body.empty() || part.body_bytes != bytes) {
      return data_loss("the rest of entry {} does not come", after + 1);
    }
    *body += part.records[0].body;
  }
  return ok_status();
}

// Appends to the copy, page by page, what the ledger there has more. The copy's own chain is computed from what came; that of the
// ledger must be the same wherever a page begins.
StatusOr<Pulled> pull(const PullFlags& flags) {
  TESSERA_RETURN_IF_ERROR(make_directories(flags.out));
  const std::string path = flags.out + "/journal.sqlite";
  TESSERA_ASSIGN_OR_RETURN(const auto copy, store::open_journal(path));
  net::prepare_grpc();
  TESSERA_ASSIGN_OR_RETURN(const auto link, net::GrpcOrchestratorLink::create(
      {.orchestrator = flags.orchestrator, .signer = std::make_shared<net::RequestSigner>(KeyPair::generate()), .software = version(),
       .expected_orchestrator = {}}));
  const store::LedgerSeal public_view(std::nullopt);
  Pulled pulled;
  while (true) {
    pulled.last = copy->last_sequence();
    TESSERA_ASSIGN_OR_RETURN(pulled.chain, copy->chain_at(pulled.last));
    auto page = link->read_ledger(pulled.last, 0);
    if (absl::IsOutOfRange(page.status()) || (page.ok() && page->chain_before != pulled.chain)) {
      return data_loss("{}: entry {} of this copy is not in the ledger of {}: another run's, or a ledger that was rewritten; pull into "
                       "another folder", path, pulled.last, flags.orchestrator);
    }
    TESSERA_RETURN_IF_ERROR(page.status());
    if (page->records.empty()) return pulled;
    TESSERA_RETURN_IF_ERROR(complete(*link, pulled.last, page->body_bytes, &page->records[0].body));
    uint64_t expected = pulled.last;
    for (store::JournalRecord& record : page->records) {
      if (record.sequence != ++expected) return data_loss("{} sent entry {} for entry {}", flags.orchestrator, record.sequence, expected);
      TESSERA_ASSIGN_OR_RETURN(ReadableEntry entry, readable(public_view, record));
      record.json = std::move(entry.json);
    }
    TESSERA_RETURN_IF_ERROR(copy->append(&page->records));
    pulled.entries += page->records.size();
  }
}

int run(const PullFlags& flags) {
  const auto pulled = pull(flags);
  if (!pulled.ok()) {
    fail("tesseractl", pulled.status());
    return absl::IsUnavailable(pulled.status()) || absl::IsDeadlineExceeded(pulled.status()) ? kExitRestart : kExitFailure;
  }
  if (flags.json) {
    const nlohmann::json value = {{"new_entries", pulled->entries}, {"entries", pulled->last}, {"chain", pulled->chain.hex()}};
    fmt::print("{}\n", value.dump());
  } else {
    fmt::print("{} new entries, {} in all, in {}; chain value of the last:\n{}\n", pulled->entries, pulled->last, flags.out,
               pulled->chain.hex());
  }
  return kExitOk;
}

}  // namespace

void add_ledger_pull(CLI::App* ledger, Action& action) {
  CLI::App* pulling = ledger->add_subcommand("pull", "Copy the public ledger of a running orchestrator; again: what is new");
  const auto flags = std::make_shared<PullFlags>();
  pulling->add_option("--orchestrator", flags->orchestrator, "host:port")->required()->envname("TESSERA_ORCHESTRATOR");
  pulling->add_option("--out", flags->out, "Folder of the copy: --journal of the other commands")->required();
  pulling->add_flag("--json", flags->json, "As one line of JSON");
  pulling->callback([&action, flags] { action = [flags] { return run(*flags); }; });
}

}  // namespace tessera::apps
