import { dataCenterHosts, type SdpSettings, scopesFor, type Toolset } from '../contract.ts'

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
  /** whether the administrator can make connect links */
  consentLinks?: boolean | undefined
}): string {
  const { console: host } = dataCenterHosts[context.sdp.dataCenter]
  return [
    'A person must authorize again:',
    ...(context.consentLinks
      ? [
          `Easiest: ask the administrator for a connect link (POST /v1/users/${context.user.username}/connect-link), open it in a browser and agree at Zoho. Or:`,
        ]
      : []),
    `1. Open ${host}, choose the Self Client, tab "Generate Code".`,
    `2. Scope: ${scopesFor(context.toolsets, context.readOnly).join(',')}. Duration: 10 minutes. Choose the portal "${context.sdp.portal}" if asked.`,
    `3. Give the code within that time to the administrator, who sends POST /v1/users/${context.user.username}/authorization with {"grantCode": "<code>"}; with a stand-alone instance put it into .env as SDP_GRANT_CODE and start again.`,
    'Until then every call fails the same way; do not retry.',
  ].join('\n')
}
