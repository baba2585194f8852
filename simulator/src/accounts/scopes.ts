/** Scope names (docs/sdp-api.md 2.9). `SDPOnDemand.<module>.<operation>`; case does not matter. */

const modules = [
  'requests',
  'problems',
  'changes',
  'releases',
  'projects',
  'assets',
  'cmdb',
  'contracts',
  'purchases',
  'solutions',
  'setup',
  'users',
  'general',
  'custommodule',
  'technicians',
]
const operations = ['ALL', 'CREATE', 'READ', 'UPDATE', 'DELETE']

export type ScopeOperation = 'CREATE' | 'READ' | 'UPDATE' | 'DELETE'

export const everyScope = [...modules.map(module => `SDPOnDemand.${module}.ALL`), 'AaaServer.profile.READ']

/** Splits a scope list at commas or spaces, as the console and the consent page take it. */
export function splitScopes(text: string): string[] {
  return text.split(/[,\s]+/).filter(Boolean)
}

/** Zoho refuses unknown scope names at once (2.8 `invalid_scope`). */
export function isKnownScope(scope: string): boolean {
  const [service, module, operation, ...rest] = scope.split('.')
  if (rest.length > 0 || !service || !module || !operation) return false
  if (service.toLowerCase() === 'aaaserver')
    return module.toLowerCase() === 'profile' && /^(read|all)$/i.test(operation)
  return (
    service.toLowerCase() === 'sdpondemand' &&
    modules.includes(module.toLowerCase()) &&
    operations.includes(operation.toUpperCase())
  )
}

/** Whether granted scopes allow `operation` on one of `modules` (any of them will do). */
export function scopesAllow(granted: string[], wanted: readonly string[], operation: ScopeOperation): boolean {
  return granted.some(scope => {
    const [service, module, given] = scope.toLowerCase().split('.')
    return (
      service === 'sdpondemand' &&
      wanted.includes(module ?? '') &&
      (given === 'all' || given === operation.toLowerCase())
    )
  })
}
