// Quantiles of measured values, to two decimals.

/** The value that so large a share of the values does not exceed; 0 of none. */
export function at(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return Number((sorted[Math.floor((sorted.length - 1) * share)] ?? 0).toFixed(2));
}
