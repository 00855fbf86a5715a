// Recall@K of retrieval as BLIP-2 reports it: the share of queries with at least one relevant item among the first K.

/** From 0 to 1. `ranked`: per query the ids found, best first; `relevant`: per query the ids that are right. NaN without queries. */
export function recallAtK(
  ranked: readonly (readonly string[])[],
  relevant: readonly (readonly string[])[],
  k: number,
): number {
  const hits = ranked.filter((ids, query) => ids.slice(0, k).some((id) => relevant[query]!.includes(id)));
  return hits.length / ranked.length;
}
