// The C interface of libdfq_cpu.so, all of it.
#pragma once
#include "dfq_decoder.h"
#include "dfq_draft.h"
#include "dfq_kernels.h"
#include "dfq_tiled.h"
