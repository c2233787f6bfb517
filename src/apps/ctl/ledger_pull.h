// ledger pull: a copy of a running orchestrator's public ledger, for whoever may read it.
#pragma once

#include "ctl/commands.h"

namespace tessera::apps {

void add_ledger_pull(CLI::App* ledger, Action& action);

}  // namespace tessera::apps
