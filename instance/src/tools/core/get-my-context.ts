import { z } from 'zod'
import { AuthorizationError } from '../../context.ts'
import { cut } from '../../cut.ts'
import { isSdpError } from '../../sdp/errors.ts'
import type { Person } from '../../sdp/people.ts'
import { plainLine } from '../clean-text.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { nameLine } from '../request-view.ts'
import { authorizationSteps, covers } from '../scopes.ts'
import { formatInstant } from '../time.ts'

export const getMyContext = defineTool({
  name: 'get_my_context',
  title: 'Who am I',
  toolset: 'core',
  description:
    'Tells who you act as, portal, time zone, connection to Zoho, granted scopes, enabled tools, and what your role in ServiceDesk Plus refuses. Call first when unsure; never fails for lack of authorization.',
  input: {},
  output: {
    user: z.looseObject({}),
    portal: z.looseObject({}),
    connection: z.looseObject({}),
    tools: z.looseObject({}),
  },
  effect: 'read',
  scopes: [],
  async run(_input, call) {
    const { context, session } = call
    const status = await context.tokens.status()
    const isConnected = status.state === 'connected'
    const zone = isConnected ? await call.zone() : 'UTC'
    const [{ me, problem }, refused] = isConnected
      ? await Promise.all([whoAmI(call), refusedLists(call, status.scopes)])
      : [{}, []]
    const steps = authorizationSteps({ ...context, toolsets: session.toolsets, readOnly: session.readOnly })
    const hidden = Object.entries(session.missingScopes).map(
      ([scope, tools]) => `${tools.join(', ')}: not granted ${scope}`,
    )
    const load = call.client.load()
    const at = (date: Date | null) => (date ? formatInstant(date.getTime(), zone) : undefined)
    return {
      data: {
        user: {
          username: context.user.username,
          name: nameLine(me) ?? context.user.displayName,
          email: me?.email ?? context.user.email,
          id: me?.id,
          technician: me?.isTechnician,
          site: nameLine(me?.site),
          department: nameLine(me?.department),
          roles: me?.roles?.map(nameLine),
        },
        portal: {
          name: context.sdp.portal,
          url: new URL(`/app/${encodeURIComponent(context.sdp.portal)}/home`, context.sdp.baseUrl).href,
          data_center: context.sdp.dataCenter,
          time_zone: zone,
          now: formatInstant(context.now(), zone),
          problem,
          refused,
          refused_next_step: refused.length > 0 ? refusedNextStep : undefined,
        },
        connection: {
          state: status.state,
          reason: status.reason,
          next_step: isConnected ? undefined : steps,
          scopes: status.scopes,
          access_token_expires: at(status.accessTokenExpiresAt),
          last_refreshed: at(status.lastRefreshedAt),
          tokens_minted_in_10_minutes: status.mintsInWindow,
        },
        rate: { calls_last_minute: load.callsLastMinute, limited_by_site_at: at(toDate(load.limitedAt)) },
        tools: {
          toolsets: session.toolsets,
          read_only: session.readOnly,
          count: session.tools.length,
          hidden: hidden.length > 0 ? hidden : undefined,
          hidden_next_step: hidden.length > 0 ? steps : undefined,
        },
      },
    }
  },
})

const refusedNextStep =
  'Tell the person. An administrator of ServiceDesk Plus can allow a list in the role of this person (setup, users and permissions, roles) or with a licence for the module; this is looked up once an hour. Where lists of people are refused, name people by e-mail address.'

/** What the site keeps from this person although the scopes are granted; a failure of another kind is told elsewhere. */
async function refusedLists(call: ToolCall, scopes: readonly string[]): Promise<string[]> {
  try {
    const found = await call.access.refusals(call.sdp, call.session.toolsets, scope => covers(scopes, scope))
    return found.map(({ list, kind, httpStatus, said }) => {
      const why =
        kind === 'denied'
          ? 'the role of this person in ServiceDesk Plus does not allow it'
          : 'the scope is granted, but the site does not offer it'
      return `${list}: refused with HTTP ${httpStatus}${said ? ` "${cut(plainLine(said), 80)}"` : ''}: ${why}`
    })
  } catch (error) {
    if (error instanceof AuthorizationError) return []
    throw error
  }
}

function toDate(instant: number | undefined): Date | null {
  return instant === undefined ? null : new Date(instant)
}

/** The person as the site knows them; a site that refuses or is down is told of, because that is what one asks this for. */
async function whoAmI(call: ToolCall): Promise<{ me?: Person; problem?: string }> {
  try {
    return { me: await call.people.me(call.sdp) }
  } catch (error) {
    if (isSdpError(error, 'cancelled')) throw error
    return {
      problem:
        error instanceof Error && (isSdpError(error) || error instanceof AuthorizationError)
          ? error.message
          : 'Your account could not be read.',
    }
  }
}
