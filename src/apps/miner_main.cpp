// tessera-miner: holds one stage of a run's model and trains it.
#include "miner_program.h"

int main(int argc, char** argv) { return tessera::apps::run_miner(argc, argv, {}); }
