//! What of a `VirtualService` has no effect.

use super::VirtualService;

pub(super) fn of_virtual_service(service: &VirtualService) -> Vec<String> {
    let mut hints = Vec::new();
    let first = service.http.iter().position(super::HttpRoute::is_catch_all);
    if let Some(first) = first.filter(|first| first + 1 < service.http.len()) {
        hints.push(format!("spec.http[{first}] matches every call: the rules after it never count"));
    }
    for (at, rule) in service.http.iter().enumerate() {
        if let Some(fault) = &rule.fault {
            let abort = fault.abort.as_ref();
            if abort.is_some_and(|abort| abort.percentage.is_none()) {
                hints.push(format!("spec.http[{at}].fault.abort has no percentage and hits nobody"));
            } else if abort.is_some_and(|abort| abort.http_status.is_none() && abort.grpc_status.is_empty()) {
                hints.push(format!("spec.http[{at}].fault.abort has no status and hits nobody"));
            }
            if fault.delay.as_ref().is_some_and(|delay| delay.percentage.is_none() && delay.percent == 0) {
                hints.push(format!("spec.http[{at}].fault.delay has no percentage and hits nobody"));
            }
        }
        for (to, destination) in rule.route.iter().enumerate() {
            if destination.weight == 0 && rule.route.len() > 1 {
                hints.push(format!("spec.http[{at}].route[{to}] has the weight 0 and gets nothing"));
            }
        }
    }
    hints
}
