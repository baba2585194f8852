import { dataCenterHosts, type SdpSettings, type Toolset } from '../contract.ts'

/** Zoho scopes a toolset works with (fact sheet 2.9), as the person enters them in the console. */
const scopesOf: Record<Toolset, string[]> = {
  core: ['requests.ALL', 'solutions.READ', 'users.READ', 'setup.READ'],
  requests_extra: ['requests.ALL'],
  approvals: ['requests.ALL', 'changes.ALL'],
  problems: ['problems.ALL'],
  changes: ['changes.ALL'],
  releases: ['releases.ALL'],
  assets: ['assets.ALL'],
  cmdb: ['cmdb.ALL'],
  projects: ['projects.ALL'],
  solutions: ['solutions.ALL'],
  purchasing: ['contracts.READ', 'purchases.READ'],
  announcements: ['general.ALL'],
  destructive: ['requests.ALL', 'assets.ALL'],
  advanced: ['general.ALL'],
}

/** Full scope names for a set of toolsets; a `.READ` beside an `.ALL` of the same module is left out. */
export function scopesFor(toolsets: readonly Toolset[], readOnly: boolean): string[] {
  const wanted = new Set(toolsets.flatMap(toolset => scopesOf[toolset]))
  const narrowed = [...wanted].map(scope => (readOnly ? scope.replace(/\.ALL$/, '.READ') : scope))
  const kept = [...new Set(narrowed)].filter(
    scope => !(scope.endsWith('.READ') && narrowed.includes(scope.replace(/READ$/, 'ALL'))),
  )
  return [...kept.map(scope => `SDPOnDemand.${scope}`), 'AaaServer.profile.READ']
}

/** Whether a grant covers a need such as `requests.READ`. An unknown grant (no scopes told) covers everything: SDP decides. */
export function covers(granted: readonly string[], needed: string): boolean {
  if (granted.length === 0) return true
  const [module, operation] = needed.toLowerCase().split('.')
  return granted.some(scope => {
    const [product, grantedModule, grantedOperation] = scope.toLowerCase().split('.')
    return (
      product === 'sdpondemand' &&
      grantedModule === module &&
      (grantedOperation === 'all' || grantedOperation === operation)
    )
  })
}

/** What a person does to connect or reconnect, with every address and value they need. */
export function authorizationSteps(context: {
  sdp: SdpSettings
  user: { username: string }
  toolsets: readonly Toolset[]
  readOnly: boolean
}): string {
  const { console: host } = dataCenterHosts[context.sdp.dataCenter]
  return [
    'A person must authorize again:',
    `1. Open ${host}, choose the Self Client, tab "Generate Code".`,
    `2. Scope: ${scopesFor(context.toolsets, context.readOnly).join(',')}. Duration: 10 minutes. Choose the portal "${context.sdp.portal}" if asked.`,
    `3. Give the code within that time to the administrator, who sends POST /v1/users/${context.user.username}/authorization with {"grantCode": "<code>"}; with a stand-alone instance put it into .env as SDP_GRANT_CODE and start again.`,
    'Until then every call fails the same way; do not retry.',
  ].join('\n')
}
