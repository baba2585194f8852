import { networkInterfaces } from 'node:os'

/**
 * Whether an address is one of this machine's own. What was found is kept; an address that is not known makes us look
 * again, because each network of the engine brings a new one.
 */
export function createOwnAddresses(look = addressesOfInterfaces): { has(address: string): boolean } {
  let known = new Set<string>()
  return {
    has(address) {
      if (known.has(address)) return true
      known = new Set(look())
      return known.has(address)
    },
  }
}

function addressesOfInterfaces(): string[] {
  return Object.values(networkInterfaces()).flatMap(found => found?.map(({ address }) => address) ?? [])
}
