/** Lower case, without accents, punctuation and the sorting prefixes admins use ("1 - Low", "z - Medium"; docs/sdp-api.md 18.7). */
export function plain(text: string): string {
  return text
    .normalize('NFKD')
    .replace(/\p{M}/gu, '')
    .toLowerCase()
    .replace(/^\s*(?:\d{1,2}|[a-z])\s*[-.):]\s+/, '')
    .replace(/[^\p{L}\p{N}]+/gu, ' ')
    .trim()
}

/** The closest of the candidates, best first; those that share nothing with `text` are left out. */
export function closest(text: string, candidates: string[], limit = 5): string[] {
  const wanted = plain(text)
  return candidates
    .map(candidate => ({ candidate, score: likeness(wanted, plain(candidate)) }))
    .filter(({ score }) => score > 0.2)
    .sort((a, b) => b.score - a.score)
    .slice(0, limit)
    .map(({ candidate }) => candidate)
}

/** 0 to 1: containment counts most, else the Dice coefficient of letter pairs. */
function likeness(a: string, b: string): number {
  if (a === b) return 1
  if (a !== '' && b !== '' && (a.includes(b) || b.includes(a))) return 0.9
  const [pairsA, pairsB] = [pairs(a), pairs(b)]
  if (pairsA.size === 0 || pairsB.size === 0) return 0
  const shared = [...pairsA].filter(pair => pairsB.has(pair)).length
  return (2 * shared) / (pairsA.size + pairsB.size)
}

function pairs(text: string): Set<string> {
  const padded = ` ${text} `
  return new Set(Array.from({ length: Math.max(0, padded.length - 1) }, (_, index) => padded.slice(index, index + 2)))
}
