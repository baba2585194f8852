import type { ConnectionReport, SdpSettings } from '../contract.ts'
import type { Sdp } from './client.ts'
import { isSdpError } from './errors.ts'
import { path } from './path.ts'

/**
 * Looks whether the site knows the portal, by asking for one ticket: a wrong portal answers 404 to everything
 * (docs/sdp-api.md 1.2). Any other failure says nothing about the portal and is left to whoever meets it.
 *
 * @returns the report, with `portal-unknown` when it is a connected grant that leads nowhere
 */
export async function checkPortal(
  report: ConnectionReport,
  settings: SdpSettings,
  sdp: Sdp,
): Promise<ConnectionReport> {
  if (report.state !== 'connected' || report.reasonCode !== null) return report
  try {
    await sdp.list(path`/requests`, { row_count: 1 }, { probe: true })
  } catch (error) {
    if (isSdpError(error, 'not-found'))
      return {
        ...report,
        reasonCode: 'portal-unknown',
        reason: `Zoho accepted the grant, but ${settings.baseUrl} knows no portal "${settings.portal}", or this person has no access to it. Take the part after /app/ in the address of ServiceDesk Plus as the portal.`,
      }
  }
  return report
}
