import { type DataCenter, dataCenterHosts, type SdpSettings } from '@sdp-mcp/instance/contract'
import type { Config } from './config.ts'
import { AppError, type InvalidPart } from './errors.ts'

/** What a user's row says; null means: the control plane's default of the moment. */
export type StoredSdpSettings = {
  dataCenter: DataCenter | null
  portal: string | null
  baseUrl: string | null
  accountsUrl: string | null
}

type SdpConfig = Pick<Config, 'sdpDefaults' | 'allowInsecureUpstream'>

/**
 * The settings an instance works with. The user's own come first, then the control plane's; hosts that nobody gave
 * follow from the data center, never from one another (fact sheet 1.1).
 */
export function effectiveSdpSettings(
  stored: StoredSdpSettings,
  { sdpDefaults }: SdpConfig,
): Omit<SdpSettings, 'portal'> & { portal: string | null } {
  const dataCenter = stored.dataCenter ?? sdpDefaults.dataCenter
  const hosts = dataCenterHosts[dataCenter]
  return {
    dataCenter,
    portal: stored.portal ?? sdpDefaults.portal,
    baseUrl: stored.baseUrl ?? (sdpDefaults.baseUrlGiven || !stored.dataCenter ? sdpDefaults.baseUrl : hosts.api),
    accountsUrl:
      stored.accountsUrl ??
      (sdpDefaults.accountsUrlGiven || !stored.dataCenter ? sdpDefaults.accountsUrl : hosts.accounts),
  }
}

/**
 * The origin of a URL that an admin typed; a path such as `/app/itdesk` is dropped (fact sheet 1.2).
 * @throws AppError `sdp-settings-refused` unless it is https without credentials
 */
export function upstreamOrigin(
  field: 'baseUrl' | 'accountsUrl',
  text: string,
  { allowInsecureUpstream }: SdpConfig,
): string {
  const url = new URL(text)
  const refuse = (detail: string) => {
    const invalid: InvalidPart[] = [{ pointer: `#/sdp/${field}`, detail }]
    return new AppError('sdp-settings-refused', `sdp.${field} ${detail}`, { invalid })
  }
  if (url.username || url.password) throw refuse('must not contain a user name or password. Give only the address.')
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && allowInsecureUpstream))
    throw refuse('must be an https address, for example https://helpdesk.example.com.')
  return url.origin
}
