// dfq_abi_describe: the interface that this library was built with.
#include "dfq_abi.h"
#include "dfq_abi_description.h"

const char* dfq_abi_describe() { return DFQ_ABI_DESCRIPTION; }
